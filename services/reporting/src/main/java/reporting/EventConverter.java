package reporting;

import io.apicurio.registry.rest.client.exception.NotFoundException;
import io.apicurio.registry.rest.client.exception.RestClientException;
import io.apicurio.registry.utils.converter.AvroConverter;
import org.apache.avro.generic.GenericRecord;
import org.apache.kafka.common.header.Headers;
import org.apache.kafka.connect.data.SchemaAndValue;
import org.apache.kafka.connect.errors.RetriableException;

/**
 * Apicurio's converter, with the difference between a record that is bad and a registry that does not answer. Connect
 * sets a bad record aside. Without this class it would do the same to every record that arrives during an outage of
 * the registry.
 */
public final class EventConverter extends AvroConverter<GenericRecord> {
    @Override
    public SchemaAndValue toConnectData(String topic, Headers headers, byte[] value) {
        try {
            return super.toConnectData(topic, headers, value);
        } catch (NotFoundException error) {
            // The registry answers that it has no such schema, so the record is bad.
            throw error;
        } catch (RestClientException error) {
            throw new RetriableException("the schema registry does not answer", error);
        }
    }
}
