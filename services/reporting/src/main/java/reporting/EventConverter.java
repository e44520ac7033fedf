package reporting;

import io.apicurio.registry.rest.client.exception.NotFoundException;
import io.apicurio.registry.utils.converter.AvroConverter;
import io.apicurio.rest.client.auth.exception.ForbiddenException;
import io.apicurio.rest.client.auth.exception.NotAuthorizedException;
import io.apicurio.rest.client.error.ApicurioRestClientException;
import java.util.Map;
import org.apache.avro.generic.GenericRecord;
import org.apache.kafka.common.header.Headers;
import org.apache.kafka.connect.data.SchemaAndValue;
import org.apache.kafka.connect.errors.RetriableException;

/**
 * Apicurio's converter, with the difference between a record that is bad and a registry that does not answer. Connect
 * sets a bad record aside. Without this class it would do the same to every record that arrives during an outage of
 * the registry, or while the registry refuses this worker.
 */
public final class EventConverter extends AvroConverter<GenericRecord> {
    private Map<String, ?> settings;
    /** The last record that could be read. */
    private byte[] readable;

    @Override
    public void configure(Map<String, ?> settings, boolean isKey) {
        this.settings = settings;
        super.configure(settings, isKey);
    }

    @Override
    public SchemaAndValue toConnectData(String topic, Headers headers, byte[] value) {
        try {
            SchemaAndValue event = super.toConnectData(topic, headers, value);
            readable = value;
            return event;
        } catch (NotFoundException error) {
            // The registry answers that it has no such schema, so the record is bad.
            throw error;
        } catch (ForbiddenException | NotAuthorizedException error) {
            // A refusal of one schema while another is told is about the record, and a refusal of all about the worker.
            if (isAnotherTold(topic)) {
                throw error;
            }
            throw new RetriableException("the schema registry refuses every schema", error);
        } catch (ApicurioRestClientException error) {
            throw new RetriableException("the schema registry does not answer", error);
        }
    }

    /** A new converter knows no schema, so it asks the registry for the one of a record that could be read. */
    private boolean isAnotherTold(String topic) {
        try (AvroConverter<GenericRecord> other = new AvroConverter<>()) {
            other.configure(settings, false);
            return readable != null && other.toConnectData(topic, readable) != null;
        } catch (ApicurioRestClientException error) {
            return false;
        }
    }

    @Override
    protected SchemaAndValue toSchemaAndValue(GenericRecord event) {
        return super.toSchemaAndValue(Micros.of(event));
    }
}
