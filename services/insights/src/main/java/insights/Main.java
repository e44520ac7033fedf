package insights;

import java.io.IOException;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.ExecutionException;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.DescribeTopicsOptions;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.common.config.TopicConfig;
import org.apache.kafka.common.errors.TopicExistsException;
import org.apache.kafka.common.utils.Utils;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** Revenue and units by item and minute, and outcomes of orders by minute, from the events of the order service. */
public final class Main {
    private static final Logger LOG = LoggerFactory.getLogger(Main.class);
    private static final Duration STOP_TIMEOUT = Duration.ofSeconds(20);
    private static final long RETRY_MILLIS = 2_000;
    private static final int REQUEST_MILLIS = 5_000;
    /** A configuration that can never work, as in sysexits.h. */
    private static final int EX_USAGE = 64;

    private Main() {}

    /** Runs until SIGTERM. */
    public static void main(String[] arguments) {
        try {
            run(new Settings(System.getenv()));
        } catch (IOException | RuntimeException error) {
            LOG.error("it cannot start: {}", error.getMessage());
            Runtime.getRuntime().halt(error instanceof IllegalArgumentException ? EX_USAGE : 1);
        }
    }

    private static void run(Settings settings) throws IOException {
        Events events = new Events(new SchemaRegistry(settings));
        SalesTopology topology = new SalesTopology(events, settings.seconds("GRACE_SECONDS", 600));
        KafkaStreams streams = new KafkaStreams(topology.build(), settings.streams());
        streams.setUncaughtExceptionHandler(error -> {
            LOG.error("a thread failed, and another one begins where it committed last", error);
            Utils.sleep(RETRY_MILLIS);
            return StreamThreadExceptionResponse.REPLACE_THREAD;
        });
        streams.setStateListener((now, before) -> {
            LOG.info("{} after {}", now, before);
            if (now == KafkaStreams.State.ERROR) {
                // The thread that reads the items cannot be replaced: a supervisor starts the process again.
                Runtime.getRuntime().halt(1);
            }
        });
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            boolean isClosed = streams.close(STOP_TIMEOUT);
            // Java's own status after SIGTERM is 143.
            Runtime.getRuntime().halt(isClosed ? 0 : 1);
        }));
        Server server = new Server(streams);
        server.serveProbes(settings.address("PROBE_ADDR", "0.0.0.0:9090"));
        server.serveApi(settings.address("HTTP_ADDR", "0.0.0.0:8080"), settings.apiTls());
        awaitTopics(settings);
        events.awaitSchemas(SalesTopology.PUBLISHED);
        streams.start();
    }

    /** Streams would give up without its topics. Another command creates all but the one of this service alone. */
    private static void awaitTopics(Settings settings) {
        List<String> topics = new ArrayList<>(SalesTopology.PUBLISHED);
        topics.addAll(SalesTopology.ORDER_TOPICS);
        topics.add(SalesTopology.ITEMS);
        String millis = String.valueOf(SalesTopology.ORDERS_RETENTION.toMillis());
        NewTopic deadLetters = new NewTopic(Settings.DEAD_LETTERS, Optional.of(1), Optional.empty())
                .configs(Map.of(TopicConfig.RETENTION_MS_CONFIG, millis));
        DescribeTopicsOptions soon = new DescribeTopicsOptions().timeoutMs(REQUEST_MILLIS);
        try (Admin admin = Admin.create(settings.kafka())) {
            while (true) {
                try {
                    admin.describeTopics(topics, soon).allTopicNames().get();
                    admin.createTopics(List.of(deadLetters)).all().get();
                    return;
                } catch (ExecutionException | InterruptedException error) {
                    if (error.getCause() instanceof TopicExistsException) {
                        return;
                    }
                    LOG.warn("waiting for the topics: {}", error.getMessage());
                    Utils.sleep(RETRY_MILLIS);
                }
            }
        }
    }
}
