package insights;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.time.Instant;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.ConcurrentHashMap;
import org.apache.avro.Schema;
import org.apache.avro.generic.GenericData;
import org.apache.avro.generic.GenericDatumReader;
import org.apache.avro.generic.GenericDatumWriter;
import org.apache.avro.generic.GenericRecord;
import org.apache.avro.io.BinaryDecoder;
import org.apache.avro.io.DecoderFactory;
import org.apache.avro.io.EncoderFactory;
import org.apache.kafka.common.errors.SerializationException;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.header.Headers;
import org.apache.kafka.common.serialization.Serializer;

/** Events in Avro behind the id of their schema (Confluent's wire format), with the headers of CloudEvents. */
final class Events implements Serializer<GenericRecord> {
    private static final byte MAGIC = 0;

    private final SchemaRegistry registry;
    private final Map<String, Integer> ids = new ConcurrentHashMap<>();
    private final Map<String, Schema> schemas = new ConcurrentHashMap<>();
    private final Map<String, Schema> projections = new ConcurrentHashMap<>();

    Events(SchemaRegistry registry) {
        this.registry = registry;
    }

    /** A new event for a topic, with the values of its fields in the order of the schema. */
    GenericRecord event(String topic, Object... values) {
        GenericRecord event = new GenericData.Record(schema(topic));
        for (Schema.Field field : event.getSchema().getFields()) {
            event.put(field.pos(), values[field.pos()]);
        }
        return event;
    }

    @Override
    public byte[] serialize(String topic, Headers headers, GenericRecord event) {
        // A sum has no single cause, so it has no header of the event that was added last.
        for (Header inherited : headers.toArray()) {
            headers.remove(inherited.key());
        }
        Map.of("ce_specversion", "1.0", "ce_id", UUID.randomUUID().toString(), "ce_type", topic,
                "ce_source", "/insights", "ce_time", Instant.now().toString(), "content-type", "application/avro")
                .forEach((name, value) -> headers.add(name, value.getBytes(StandardCharsets.UTF_8)));
        return serialize(topic, event);
    }

    @Override
    public byte[] serialize(String topic, GenericRecord event) {
        ByteArrayOutputStream bytes = new ByteArrayOutputStream();
        int id = ids.computeIfAbsent(topic, name -> registry.idOf(name, text(name)));
        bytes.writeBytes(ByteBuffer.allocate(1 + Integer.BYTES).put(MAGIC).putInt(id).array());
        try {
            new GenericDatumWriter<GenericRecord>(event.getSchema())
                    .write(event, EncoderFactory.get().directBinaryEncoder(bytes, null));
            return bytes.toByteArray();
        } catch (IOException error) {
            throw new SerializationException(topic, error);
        }
    }

    /** Decodes what is not personal. */
    GenericRecord deserialize(String topic, byte[] bytes) {
        ByteBuffer frame = ByteBuffer.wrap(bytes);
        if (frame.get() != MAGIC) {
            throw new SerializationException("it has no id of a schema");
        }
        Schema written = registry.schema(frame.getInt());
        BinaryDecoder decoder = DecoderFactory.get().binaryDecoder(bytes, frame.position(), frame.remaining(), null);
        try {
            Schema read = projections.computeIfAbsent(topic, name -> withoutPersonal(schema(name)));
            GenericRecord event = new GenericDatumReader<GenericRecord>(written, read).read(null, decoder);
            Timestamps.convert(event, written);
            if (!decoder.isEnd()) {
                throw new SerializationException("it has bytes after its end");
            }
            return event;
        } catch (IOException error) {
            throw new SerializationException(topic, error);
        }
    }

    private Schema schema(String topic) {
        return schemas.computeIfAbsent(topic, name -> new Schema.Parser().parse(text(name)));
    }

    private static String text(String topic) {
        try (InputStream file = Events.class.getResourceAsStream("/schemas/" + topic + ".avsc")) {
            return new String(file.readAllBytes(), StandardCharsets.UTF_8);
        } catch (IOException error) {
            throw new SerializationException(topic, error);
        }
    }

    /** A reader's schema that skips what is marked as personal, so that it reaches no store and no topic. */
    private static Schema withoutPersonal(Schema schema) {
        List<Schema.Field> fields = schema.getFields().stream()
                .filter(field -> !Boolean.TRUE.equals(field.getObjectProp("personal")))
                .map(field -> new Schema.Field(field, field.schema())).toList();
        return Schema.createRecord(schema.getName(), schema.getDoc(), schema.getNamespace(), false, fields);
    }
}
