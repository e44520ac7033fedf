package insights;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import org.apache.avro.Schema;
import org.apache.avro.generic.GenericData;
import org.apache.avro.generic.GenericDatumWriter;
import org.apache.avro.generic.GenericRecord;
import org.apache.avro.io.EncoderFactory;
import org.apache.kafka.common.header.internals.RecordHeaders;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.apache.kafka.common.serialization.StringSerializer;
import org.apache.kafka.streams.TopologyTestDriver;
import org.apache.kafka.streams.test.TestRecord;

/** Events as the other services publish them, and the schemas that a registry would have. */
final class PublishedEvents {
    static final String CUSTOMER = "0193aaaa-0000-7000-8000-00000000c0de";

    private final Map<Integer, Schema> schemas = new ConcurrentHashMap<>();
    private final SchemaRegistry registry = new SchemaRegistry("http://none") {
        @Override
        Schema schema(int id) {
            return schemas.get(id);
        }

        @Override
        int idOf(String topic, String schema) {
            return registered(new Schema.Parser().parse(schema));
        }
    };
    private final Events events = new Events(registry);

    record Published(String topic, String key, byte[] bytes) {
        void pipe(TopologyTestDriver driver, long at) {
            RecordHeaders headers = new RecordHeaders();
            headers.add("traceparent", "00-1-1-01".getBytes());
            driver.createInputTopic(topic, new StringSerializer(), new ByteArraySerializer())
                    .pipeInput(new TestRecord<>(key, bytes, headers, at));
        }
    }

    Events events() {
        return events;
    }

    Published created(String id, long at) {
        return publish("orders.created", id, order(id, at, 1, 100, schema("orders.created")));
    }

    Published confirmed(String id, long at, int units, long price) {
        return publish("orders.confirmed", id, order(id, at, units, price, schema("orders.confirmed")));
    }

    /** The time is in another unit, which the schema names. */
    Published confirmed(String id, String unit, long time) {
        String text = text("orders.confirmed").replace("timestamp-micros", unit);
        GenericRecord event = order(id, 0, 2, 100, new Schema.Parser().parse(text));
        event.put("occurred_at", time);
        return publish("orders.confirmed", id, event);
    }

    Published cancelled(String id, long at, String reason) {
        return publish("orders.cancelled", id, cancellation(schema("orders.cancelled"), id, at, reason));
    }

    /** With a reason and a field that this service does not know. */
    Published laterCancelled(String id, long at, String reason) {
        String text = text("orders.cancelled")
                .replace("\"customer\",", "\"customer\", \"" + reason + "\",")
                .replace("\"fields\": [", "\"fields\": [{\"name\": \"note\", \"type\": \"string\"},");
        Schema later = new Schema.Parser().parse(text);
        GenericRecord event = cancellation(later, id, at, reason);
        event.put("note", "seen before");
        return publish("orders.cancelled", id, event);
    }

    Published item(String sku, String name, long at) {
        GenericRecord event = new GenericData.Record(schema("stock.items"));
        event.put("sku", sku);
        event.put("name", name);
        event.put("price_cents", 100L);
        event.put("currency", "EUR");
        event.put("version", 1L);
        event.put("occurred_at", at * 1000);
        return publish("stock.items", sku, event);
    }

    GenericRecord decode(String topic, byte[] bytes) {
        return events.deserialize(topic, bytes);
    }

    private static GenericRecord cancellation(Schema schema, String id, long at, String reason) {
        GenericRecord event = new GenericData.Record(schema);
        event.put("order_id", id);
        event.put("reason", new GenericData.EnumSymbol(schema.getField("reason").schema(), reason));
        event.put("occurred_at", at * 1000);
        return event;
    }

    private static GenericRecord order(String id, long at, int units, long price, Schema schema) {
        GenericRecord event = new GenericData.Record(schema);
        Schema lines = event.getSchema().getField("lines").schema();
        GenericRecord line = new GenericData.Record(lines.getElementType());
        line.put("sku", "pen");
        line.put("quantity", units);
        line.put("unit_price_cents", price);
        event.put("order_id", id);
        event.put("customer_id", CUSTOMER);
        event.put("lines", new GenericData.Array<>(lines, List.of(line)));
        event.put("total_cents", units * price);
        event.put("currency", "EUR");
        event.put("occurred_at", at * 1000);
        if (schema.getField("also_asks") != null) {
            event.put("also_asks", List.of());
        }
        return event;
    }

    private int registered(Schema schema) {
        schemas.put(schema.hashCode(), schema);
        return schema.hashCode();
    }

    Published publish(String topic, String key, GenericRecord event) {
        ByteArrayOutputStream bytes = new ByteArrayOutputStream();
        bytes.writeBytes(ByteBuffer.allocate(5).put((byte) 0).putInt(registered(event.getSchema())).array());
        try {
            new GenericDatumWriter<GenericRecord>(event.getSchema())
                    .write(event, EncoderFactory.get().directBinaryEncoder(bytes, null));
        } catch (IOException error) {
            throw new AssertionError(error);
        }
        return new Published(topic, key, bytes.toByteArray());
    }

    private static Schema schema(String topic) {
        return new Schema.Parser().parse(text(topic));
    }

    private static String text(String topic) {
        try {
            return Files.readString(Path.of("../../schemas/" + topic + ".avsc"));
        } catch (IOException error) {
            throw new AssertionError(error);
        }
    }
}
