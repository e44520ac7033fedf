package insights;

import com.fasterxml.jackson.databind.JsonNode;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.net.Proxy;
import java.net.URI;
import java.net.URLConnection;
import java.time.Duration;
import java.time.Instant;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import org.apache.avro.Schema;
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
    private static final int TIMEOUT_MILLIS = 3_000;
    private static final long RETRY_MILLIS = 1_000;
    /** How far the registry may be behind: if it lacks an id for that long, no record has it. */
    private static final Duration LAG_MAX = Duration.ofMinutes(2);

    private final String url;
    private final Map<Integer, Schema> schemas = new ConcurrentHashMap<>();
    private final Map<Integer, Instant> unknown = new ConcurrentHashMap<>();
    private final Map<String, Integer> ids = new ConcurrentHashMap<>();

    SchemaRegistry(String url) {
        this.url = url.replaceAll("/$", "");
    }

    Schema schema(int id) {
        return schemas.computeIfAbsent(id, absent -> {
            Instant givesUp = unknown.computeIfAbsent(id, asked -> Instant.now().plus(LAG_MAX));
            return new Schema.Parser().parse(ask("/schemas/ids/" + id, givesUp).get("schema").asText());
        });
    }

    /** The id of our schema of a topic: there may be older and newer versions. */
    int idOf(String topic, Schema schema) {
        return ids.computeIfAbsent(topic, absent -> {
            String path = "/subjects/" + topic + "-value/versions/";
            for (JsonNode version : ask(path, Instant.MAX)) {
                int id = ask(path + version.asInt(), Instant.MAX).get("id").asInt();
                if (schema(id).equals(schema)) {
                    return id;
                }
            }
            throw new SerializationException("the registry does not have this version of " + topic);
        });
    }

    private JsonNode ask(String path, Instant givesUp) {
        while (true) {
            try {
                // A proxy that the environment names leads to the public network, where this registry is not.
                URLConnection connection = URI.create(url + path).toURL().openConnection(Proxy.NO_PROXY);
                connection.setConnectTimeout(TIMEOUT_MILLIS);
                connection.setReadTimeout(TIMEOUT_MILLIS);
                return Sum.JSON.readTree(connection.getInputStream());
            } catch (IOException error) {
                if (error instanceof FileNotFoundException && givesUp.isBefore(Instant.now())) {
                    throw new SerializationException("the registry does not have " + path);
                }
                LOG.warn("waiting for the schema registry: {}", error.toString());
                Utils.sleep(RETRY_MILLIS);
            }
        }
    }
}
