package insights;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.time.Duration;
import java.time.Instant;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import org.apache.avro.Schema;
import org.apache.kafka.common.errors.InterruptException;
import org.apache.kafka.common.errors.SerializationException;
import org.apache.kafka.common.utils.Utils;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * The schemas by their ids, and the ids of our own schemas, which the command `contracts apply` registers. Neither
 * ever changes, so each is asked for once. An outage of the registry is waited for.
 */
class SchemaRegistry {
    private static final Logger LOG = LoggerFactory.getLogger(SchemaRegistry.class);
    private static final Duration TIMEOUT = Duration.ofSeconds(3);
    private static final long RETRY_MIN_MILLIS = 100;
    private static final long RETRY_MAX_MILLIS = 5_000;

    private final Settings settings;
    private final HttpClient client;
    private final Map<Integer, Schema> schemas = new ConcurrentHashMap<>();
    private final Map<Integer, Instant> unknown = new ConcurrentHashMap<>();
    private final Map<String, Integer> ids = new ConcurrentHashMap<>();

    SchemaRegistry(Settings settings) {
        this.settings = settings;
        client = settings.httpClient(TIMEOUT);
    }

    /** The schema of this id. The registry may be behind: if it lacks the id for that long, no record has it. */
    Schema schema(int id) {
        return schemas.computeIfAbsent(id, absent -> {
            Instant givesUp = unknown.computeIfAbsent(id, asked -> Instant.now().plus(
                    settings.seconds("SCHEMA_REGISTRY_LAG_SECONDS", 120)));
            JsonNode found = ask(request("/schemas/ids/" + id).build(), givesUp);
            return new Schema.Parser().parse(found.get("schema").asText());
        });
    }

    /** The id of the schema of a topic. */
    int idOf(String topic, String schema) {
        return ids.computeIfAbsent(topic, absent -> {
            ObjectNode body = Sum.JSON.createObjectNode().put("schema", schema).put("schemaType", "AVRO");
            HttpRequest.Builder request = request("/subjects/" + topic + "-value")
                    .header("content-type", "application/json").POST(BodyPublishers.ofString(body.toString()));
            return ask(request.build(), Instant.MAX).get("id").asInt();
        });
    }

    private HttpRequest.Builder request(String path) {
        URI uri = URI.create(settings.registryUrl() + path);
        HttpRequest.Builder request = HttpRequest.newBuilder(uri).timeout(TIMEOUT);
        String authorization = settings.registryAuthorization();
        return authorization.isEmpty() ? request : request.header("authorization", authorization);
    }

    private JsonNode ask(HttpRequest request, Instant givesUp) {
        for (long millis = RETRY_MIN_MILLIS; ; millis = Math.min(2 * millis, RETRY_MAX_MILLIS)) {
            String problem;
            try {
                HttpResponse<String> response = client.send(request, BodyHandlers.ofString());
                if (response.statusCode() == 200) {
                    return Sum.JSON.readTree(response.body());
                }
                problem = request.uri().getPath() + " is answered " + response.statusCode();
                if (response.statusCode() == 404 && givesUp.isBefore(Instant.now())) {
                    throw new SerializationException(problem);
                }
            } catch (IOException error) {
                problem = error.toString();
            } catch (InterruptedException stopped) {
                throw new InterruptException(stopped);
            }
            LOG.warn("waiting for the schema registry: {}", problem);
            Utils.sleep(millis);
        }
    }
}
