package insights;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.javalin.Javalin;
import java.time.Duration;
import java.time.Instant;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.avro.AvroRuntimeException;
import org.apache.avro.Schema;
import org.apache.kafka.common.errors.SerializationException;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;

class SchemaRegistryTest {
    private static final int TOLD = 1;
    private static final int OTHER = 777;
    /** What is not waited for has ended by the first, and what is not waited for any more by the second. */
    private static final long WAITS_MILLIS = 1_200;
    private static final long SOON_MILLIS = 5_000;
    private static final String NULL = "{\"schema\": \"\\\"null\\\"\"}";

    private record Answer(int status, String body) {}

    private final Map<String, Answer> answers = new ConcurrentHashMap<>(
            Map.of("/schemas/ids/" + TOLD, new Answer(200, NULL),
                    "/subjects/insights.sales-value/versions/latest", new Answer(200, "{\"id\": " + TOLD + "}")));
    private final AtomicInteger requests = new AtomicInteger();
    private Javalin server;
    private SchemaRegistry registry;

    @BeforeEach
    void start() {
        server = Javalin.create(config -> config.routes
                .get("/<path>", request -> {
                    requests.incrementAndGet();
                    Answer answer = answers.getOrDefault(request.path(), refusal(404, 40403));
                    request.status(answer.status).result(answer.body);
                })
                .post("/<path>", request -> {
                    Answer answer = answers.getOrDefault(request.path(), refusal(404, 40401));
                    request.status(answer.status).result(answer.body);
                })).start("127.0.0.1", 0);
        registry = new SchemaRegistry("http://127.0.0.1:" + server.port() + "/");
    }

    @AfterEach
    void stop() {
        server.stop();
    }

    @Test
    void anIdThatIsRefusedWhileAnotherIsToldMakesItsRecordsUndecodableAtOnce() {
        int id = OTHER;
        for (Answer refused : List.of(refusal(403, 40301), refusal(401, 401), refusal(422, 42201),
                new Answer(403, "a page of a gateway"), new Answer(410, ""))) {
            answers.put("/schemas/ids/" + ++id, refused);
            int asked = id;
            Instant began = Instant.now();
            assertThrows(SerializationException.class, () -> registry.schema(asked), refused.toString());
            assertTrue(Duration.between(began, Instant.now()).toSeconds() < 2, refused.toString());
            int before = requests.get();
            assertThrows(SerializationException.class, () -> registry.schema(asked), refused.toString());
            assertEquals(before, requests.get(), "it is remembered for a while");
        }
        assertEquals(Schema.Type.NULL, registry.schema(TOLD).getType());
        assertThrows(SerializationException.class, () -> registry.schema(-1), "no registry gives this id");
    }

    @Test
    void aRegistryThatRefusesEveryIdIsWaitedForAndSoIsAnErrorThatMayPass() throws Exception {
        answers.put("/subjects/insights.sales-value/versions/latest", refusal(403, 40301));
        answers.put("/schemas/ids/" + OTHER, refusal(403, 40301));
        assertWaits(OTHER);
        answers.put("/subjects/insights.sales-value/versions/latest", new Answer(200, "{\"id\": " + TOLD + "}"));
        for (Answer passing : List.of(refusal(500, 50001), refusal(429, 429), new Answer(404, "no such page"),
                refusal(404, 40403), new Answer(200, "<html>"))) {
            answers.put("/schemas/ids/" + OTHER, passing);
            registry = new SchemaRegistry("http://127.0.0.1:" + server.port());
            assertWaits(OTHER);
        }
    }

    /** It shows what it waits for, and ends when the registry tells the schema. */
    private void assertWaits(int id) throws Exception {
        CompletableFuture<Schema> found = CompletableFuture.supplyAsync(() -> registry.schema(id));
        assertThrows(TimeoutException.class, () -> found.get(WAITS_MILLIS, TimeUnit.MILLISECONDS));
        assertTrue(registry.awaited().isPresent());
        answers.put("/schemas/ids/" + id, new Answer(200, NULL));
        assertEquals(Schema.Type.NULL, found.get(SOON_MILLIS, TimeUnit.MILLISECONDS).getType());
        assertFalse(registry.awaited().isPresent());
    }

    @Test
    void aSchemaThatRefersToOthersIsReadWithThem() {
        String rail = "{'type': 'enum', 'name': 'Rail', 'namespace': 'a', 'symbols': ['card']}";
        String way = "{'type': 'record', 'name': 'Way', 'namespace': 'a', 'fields': [{'name': 'r', 'type': 'a.Rail'}]}";
        String paid = "{'type': 'record', 'name': 'Paid', 'fields': [{'name': 'way', 'type': ['null', 'a.Way']},"
                + " {'name': 'rail', 'type': 'a.Rail'}]}";
        answers.put("/subjects/a.Rail/versions/3", new Answer(200, schema(rail, "")));
        answers.put("/subjects/a%20way/versions/1", new Answer(200, schema(way, reference("a.Rail", 3))));
        answers.put("/schemas/ids/" + OTHER,
                new Answer(200, schema(paid, reference("a way", 1) + ", " + reference("a.Rail", 3))));
        Schema read = registry.schema(OTHER);
        assertEquals(List.of("card"), read.getField("rail").schema().getEnumSymbols());
        assertEquals("a.Way", read.getField("way").schema().getTypes().get(1).getFullName());
    }

    @Test
    void whatIsNoSchemaOfAvroMakesItsRecordsUndecodable() {
        answers.put("/schemas/ids/2", new Answer(200, "{\"schema\": \"{}\", \"schemaType\": \"JSON\"}"));
        answers.put("/schemas/ids/3", new Answer(200, "{\"schema\": \"nonsense\"}"));
        answers.put("/schemas/ids/4", new Answer(200, "{\"schema\": \"[\\\"null\\\", \\\"Unheard\\\"]\"}"));
        assertThrows(SerializationException.class, () -> registry.schema(2));
        assertThrows(AvroRuntimeException.class, () -> registry.schema(3));
        assertThrows(AvroRuntimeException.class, () -> registry.schema(4));
    }

    @Test
    void theIdOfASchemaOfOursIsWaitedForUntilItIsRegistered() throws Exception {
        CompletableFuture<Integer> id =
                CompletableFuture.supplyAsync(() -> registry.idOf("insights.sales", "\"null\""));
        assertThrows(TimeoutException.class, () -> id.get(WAITS_MILLIS, TimeUnit.MILLISECONDS));
        answers.put("/subjects/insights.sales-value", new Answer(200, "{\"id\": 5}"));
        assertEquals(5, id.get(SOON_MILLIS, TimeUnit.MILLISECONDS));
    }

    private static Answer refusal(int status, int code) {
        return new Answer(status, "{\"error_code\": " + code + ", \"message\": \"\"}");
    }

    private static String schema(String text, String references) {
        return Sum.JSON.createObjectNode().put("schema", text.replace('\'', '"')).toString()
                .replaceFirst("}$", ", \"references\": [" + references + "]}");
    }

    private static String reference(String subject, int version) {
        return "{\"name\": \"any\", \"subject\": \"" + subject + "\", \"version\": " + version + "}";
    }
}
