package reporting;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.nio.ByteBuffer;
import java.util.Map;
import java.util.ServiceLoader;
import org.apache.kafka.common.header.internals.RecordHeaders;
import org.apache.kafka.connect.errors.RetriableException;
import org.apache.kafka.connect.storage.Converter;
import org.junit.jupiter.api.Test;

class EventConverterTest {
    private static final String TOPIC = "orders.confirmed";
    private static final byte[] FRAMED = ByteBuffer.allocate(6).put((byte) 0).putInt(7).array();

    /** A port on which no registry listens. */
    private static int closedPort() throws IOException {
        try (ServerSocket socket = new ServerSocket(0, 1, InetAddress.getLoopbackAddress())) {
            return socket.getLocalPort();
        }
    }

    private static Converter converter() throws IOException {
        Converter converter = new EventConverter();
        converter.configure(Map.of(
                "apicurio.registry.url", "http://127.0.0.1:" + closedPort() + "/apis/registry/v2",
                "apicurio.registry.as-confluent", "true",
                "apicurio.registry.use-id", "contentId"), false);
        return converter;
    }

    /** Connect tries such a record again, and sets aside what ends in any other exception. */
    @Test
    void an_outage_of_the_registry_is_no_fault_of_a_record() throws IOException {
        Converter converter = converter();
        assertThrows(RetriableException.class, () -> converter.toConnectData(TOPIC, new RecordHeaders(), FRAMED));
    }

    @Test
    void a_record_without_the_id_of_a_schema_is_bad() throws IOException {
        Converter converter = converter();
        byte[] text = "text".getBytes();
        RuntimeException error =
                assertThrows(RuntimeException.class, () -> converter.toConnectData(TOPIC, new RecordHeaders(), text));
        assertFalse(error instanceof RetriableException, error.toString());
    }

    /** A worker with `plugin.discovery=service_load` knows no other plugins. */
    @Test
    void a_worker_finds_it_by_its_service_file() {
        assertTrue(ServiceLoader.load(Converter.class).stream().map(ServiceLoader.Provider::type)
                .anyMatch(EventConverter.class::equals));
        assertEquals("reporting.EventConverter", EventConverter.class.getName());
    }
}
