package insights;

import com.fasterxml.jackson.databind.JsonNode;
import insights.Http.RefusedException;
import java.io.IOException;
import java.net.URLEncoder;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.time.Instant;
import java.util.HashSet;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.function.BiPredicate;
import org.apache.avro.AvroRuntimeException;
import org.apache.avro.Schema;
import org.apache.kafka.common.errors.SerializationException;
import org.apache.kafka.common.utils.Utils;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * The schemas by their ids, and the ids of our own schemas, which the command `contracts apply` registers. Neither
 * ever changes, so each is asked for once. An outage of the registry is waited for, and an id that the registry does
 * not tell while it tells others makes its records undecodable.
 */
class SchemaRegistry {
    private static final Logger LOG = LoggerFactory.getLogger(SchemaRegistry.class);
    private static final long RETRY_MILLIS = 1_000;
    /** How far the registry may be behind: if it lacks an id for that long, no record has it. */
    private static final Duration LAG_MAX = Duration.ofMinutes(2);
    /** How long the registry may fail for one id while it tells another. */
    private static final Duration FAILURE_MAX = Duration.ofMinutes(5);
    /** How long an id without a schema is remembered before it is asked for again, and how many of them. */
    private static final Duration ABSENCE_TTL = Duration.ofMinutes(1);
    private static final int ABSENT_IDS_MAX = 10_000;
    /** Schemas to which one schema may refer, directly or not. */
    private static final int REFERENCES_MAX = 64;
    /** That the registry does not have the subject, or the schema. A 404 without them may come from any proxy. */
    private static final Set<Integer> NOT_FOUND = Set.of(40401, 40403);
    /** These statuses pass, so they refuse nothing. */
    private static final Set<Integer> PASSING = Set.of(404, 408, 429);

    private final Http http = new Http();
    private final String url;
    private final Map<Integer, Schema> schemas = new ConcurrentHashMap<>();
    private final Map<Integer, Absence> absent = new ConcurrentHashMap<>();
    /** What is waited for, with the last answer. */
    private final Map<String, String> waits = new ConcurrentHashMap<>();

    private record Absence(Instant until, String reason) {}

    private interface Question<T> {
        T ask() throws IOException;
    }

    SchemaRegistry(String url) {
        this.url = url.replaceAll("/$", "");
    }

    /** What a thread waits for just now. */
    Optional<String> awaited() {
        return waits.values().stream().findAny();
    }

    Schema schema(int id) {
        Schema known = schemas.get(id);
        if (known != null) {
            return known;
        }
        if (id < 0) {
            throw new SerializationException(id + " is no id of a schema");
        }
        Absence absence = absent.get(id);
        if (absence != null && Instant.now().isBefore(absence.until)) {
            throw new SerializationException(absence.reason);
        }
        try {
            known = ask("schema " + id, () -> parse(http.get(url + "/schemas/ids/" + id)),
                    (error, waited) -> isFinal(id, error, waited));
        } catch (AvroRuntimeException | SerializationException error) {
            if (absent.size() >= ABSENT_IDS_MAX) {
                absent.clear();
            }
            absent.put(id, new Absence(Instant.now().plus(ABSENCE_TTL), "schema " + id + ": " + error.getMessage()));
            throw error;
        }
        schemas.put(id, known);
        return known;
    }

    /** The id of our schema of a topic, which is waited for until it is registered. */
    int idOf(String topic, String schema) {
        JsonNode wanted = Sum.JSON.createObjectNode().put("schema", schema).put("schemaType", "AVRO");
        return ask("the id of " + topic, () -> http.post(url + "/subjects/" + topic + "-value", wanted),
                (error, waited) -> false).get("id").asInt();
    }

    /** Asks until there is an answer, or its failure is final. */
    private <T> T ask(String what, Question<T> question, BiPredicate<IOException, Duration> isFinal) {
        Instant began = Instant.now();
        try {
            while (true) {
                try {
                    return question.ask();
                } catch (IOException error) {
                    if (isFinal.test(error, Duration.between(began, Instant.now()))) {
                        throw new SerializationException(error.getMessage());
                    }
                    if (!error.getMessage().equals(waits.put(what, error.getMessage()))) {
                        LOG.warn("waiting for {} of the schema registry: {}", what, error.getMessage());
                    }
                    Utils.sleep(RETRY_MILLIS);
                }
            }
        } finally {
            waits.remove(what);
        }
    }

    /** A refusal is final for one id only while another is told: 401 or 403 for every id is waited for. */
    private boolean isFinal(int id, IOException error, Duration waited) {
        if (error instanceof RefusedException refused && NOT_FOUND.contains(refused.code)) {
            return waited.compareTo(LAG_MAX) > 0;
        }
        boolean isRefused = error instanceof RefusedException refused
                && refused.status / 100 == 4 && !PASSING.contains(refused.status);
        return (isRefused || waited.compareTo(FAILURE_MAX) > 0) && tellsOtherThan(id);
    }

    /** Whether the registry tells another id: one that it told before, or the newest of one of our topics. */
    private boolean tellsOtherThan(int id) {
        try {
            Optional<Integer> told = schemas.keySet().stream().findAny();
            int other = told.isPresent() ? told.get()
                    : http.get(url + "/subjects/" + SalesTopology.SALES + "-value/versions/latest").get("id").asInt();
            http.get(url + "/schemas/ids/" + other);
            return other != id;
        } catch (IOException error) {
            return false;
        }
    }

    private Schema parse(JsonNode found) throws IOException {
        if (!found.path("schemaType").asText("AVRO").equals("AVRO")) {
            throw new SerializationException("it is no schema of Avro");
        }
        Schema.Parser parser = new Schema.Parser();
        parseReferences(found, parser, new HashSet<>());
        return parser.parse(found.path("schema").asText());
    }

    /** Each schema to which this one refers, behind those to which it refers itself. */
    private void parseReferences(JsonNode found, Schema.Parser parser, Set<String> visited) throws IOException {
        for (JsonNode reference : found.path("references")) {
            String subject = URLEncoder.encode(reference.path("subject").asText(), StandardCharsets.UTF_8);
            String path = "/subjects/" + subject.replace("+", "%20") + "/versions/" + reference.path("version").asInt();
            if (!visited.add(path)) {
                continue;
            }
            if (visited.size() > REFERENCES_MAX) {
                throw new SerializationException("it refers to more than " + REFERENCES_MAX + " others");
            }
            JsonNode other = http.get(url + path);
            parseReferences(other, parser, visited);
            parser.parse(other.path("schema").asText());
        }
    }
}
