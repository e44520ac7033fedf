package reporting;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.nio.ByteBuffer;
import java.util.List;
import java.util.Map;
import java.util.ServiceLoader;
import java.util.concurrent.ConcurrentHashMap;
import java.util.function.Function;
import org.apache.kafka.common.header.internals.RecordHeaders;
import org.apache.kafka.connect.data.Struct;
import org.apache.kafka.connect.errors.RetriableException;
import org.apache.kafka.connect.storage.Converter;
import org.junit.jupiter.api.Test;

class EventConverterTest {
    private static final String TOPIC = "orders.confirmed";
    private static final String SCHEMA = """
            {"type": "record", "name": "Timed", "fields": [
              {"name": "millis", "type": {"type": "long", "logicalType": "timestamp-millis"}},
              {"name": "nanos", "type": {"type": "long", "logicalType": "timestamp-nanos"}},
              {"name": "micros", "type": {"type": "long", "logicalType": "timestamp-micros"}},
              {"name": "number", "type": "long"}]}""";
    private static final byte[] FRAMED = ByteBuffer.allocate(6).put((byte) 0).putInt(7).array();

    /** A port on which no registry listens. */
    private static int closedPort() throws IOException {
        try (ServerSocket socket = new ServerSocket(0, 1, InetAddress.getLoopbackAddress())) {
            return socket.getLocalPort();
        }
    }

    private static Converter converter() throws IOException {
        return converter(closedPort());
    }

    private static Converter converter(int port) {
        Converter converter = new EventConverter();
        converter.configure(Map.of(
                "apicurio.registry.url", "http://127.0.0.1:" + port + "/apis/registry/v2",
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
    void a_refusal_is_the_fault_of_a_record_only_while_another_schema_is_told() throws IOException {
        Map<String, Integer> statuses = new ConcurrentHashMap<>(Map.of("7", 403, "8", 401));
        HttpServer registry = registry(
                path -> statuses.getOrDefault(path.replaceFirst(".*contentIds/(\\d+).*", "$1"), 200),
                path -> path.endsWith("references") ? "[]" : SCHEMA);
        try {
            Converter converter = converter(registry.getAddress().getPort());
            assertRetried(converter, 7);
            assertRetried(converter, 8);
            Struct event = (Struct) converter.toConnectData(TOPIC, new RecordHeaders(), record(9)).value();
            assertEquals(List.of(5_000L, 5L, 5L, 5L), List.of(event.getInt64("millis"), event.getInt64("nanos"),
                    event.getInt64("micros"), event.getInt64("number")));
            assertSetAside(converter, 7);
            assertSetAside(converter, 8);
            statuses.put("9", 403);
            assertRetried(converter, 7);
        } finally {
            registry.stop(0);
        }
    }

    @Test
    void a_schema_that_refers_to_another_is_read_with_it() throws IOException {
        String rail = "{\"type\": \"enum\", \"name\": \"Rail\", \"namespace\": \"a\", \"symbols\": [\"card\"]}";
        String paid = """
                {"type": "record", "name": "P", "fields": [{"name": "rail", "type": "a.Rail"}]}""";
        HttpServer registry = registry(path -> 200, path -> path.endsWith("contentIds/9/references")
                ? "[{\"groupId\": \"default\", \"artifactId\": \"a.Rail\", \"version\": \"1\", \"name\": \"a.Rail\"}]"
                : path.endsWith("references") ? "[]" : path.contains("a.Rail") ? rail : paid);
        try {
            byte[] record = ByteBuffer.allocate(6).put((byte) 0).putInt(9).put((byte) 0).array();
            Converter converter = converter(registry.getAddress().getPort());
            Struct event = (Struct) converter.toConnectData(TOPIC, new RecordHeaders(), record).value();
            assertEquals("card", event.getString("rail"));
        } finally {
            registry.stop(0);
        }
    }

    /** A registry that answers each path with a status and a body. */
    private static HttpServer registry(Function<String, Integer> status, Function<String, String> text)
            throws IOException {
        HttpServer registry = HttpServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 0);
        registry.createContext("/", request -> {
            String path = request.getRequestURI().getPath();
            byte[] body = text.apply(path).getBytes();
            boolean isTold = status.apply(path) == 200;
            request.sendResponseHeaders(status.apply(path), isTold ? body.length : -1);
            if (isTold) {
                request.getResponseBody().write(body);
            }
            request.close();
        });
        registry.start();
        return registry;
    }

    private static byte[] record(int id) {
        // 5, 5,999, 5 and 5 as Avro writes them.
        return ByteBuffer.allocate(10).put((byte) 0).putInt(id)
                .put(new byte[] {10, (byte) 0xde, 0x5d, 10, 10}).array();
    }

    private static void assertRetried(Converter converter, int id) {
        assertThrows(RetriableException.class, () -> converter.toConnectData(TOPIC, new RecordHeaders(), record(id)));
    }

    private static void assertSetAside(Converter converter, int id) {
        RuntimeException error = assertThrows(RuntimeException.class,
                () -> converter.toConnectData(TOPIC, new RecordHeaders(), record(id)));
        assertFalse(error instanceof RetriableException, error.toString());
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
