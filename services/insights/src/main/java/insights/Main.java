package insights;

import io.javalin.http.Handler;
import io.micrometer.core.instrument.Gauge;
import io.micrometer.core.instrument.Metrics;
import io.micrometer.core.instrument.binder.kafka.KafkaStreamsMetrics;
import io.micrometer.core.instrument.binder.system.UptimeMetrics;
import io.micrometer.core.instrument.config.MeterFilter;
import io.micrometer.prometheusmetrics.PrometheusConfig;
import io.micrometer.prometheusmetrics.PrometheusMeterRegistry;
import java.io.IOException;
import java.time.Clock;
import java.time.Duration;
import javax.net.ssl.SSLContext;
import org.apache.kafka.common.utils.Utils;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** Revenue and units by item and minute, and outcomes of orders by minute, from the events of the order service. */
public final class Main {
    private static final Logger LOG = LoggerFactory.getLogger(Main.class);
    private static final Duration STOP_TIMEOUT = Duration.ofSeconds(20);
    private static final long RETRY_MILLIS = 2_000;

    /** Runs until SIGTERM. */
    public static void main(String[] arguments) {
        try {
            run(Settings.of(System.getenv()));
        } catch (IOException | RuntimeException error) {
            LOG.error("it cannot start: {}", error.getMessage());
            // EX_USAGE of sysexits.h: a configuration that can never work.
            Log.exit(error instanceof IllegalArgumentException ? 64 : 1);
        }
    }

    private static void run(Settings settings) throws IOException {
        SSLContext tls = settings.tls();
        SSLContext.setDefault(tls);
        SchemaRegistry registry = new SchemaRegistry(settings.text("SCHEMA_REGISTRY_URL"));
        Topology topology = new SalesTopology(new Events(registry)).build();
        StreamsConfig kafka = new StreamsConfig(settings.values().originalsWithPrefix("kafka."));
        KafkaStreams streams = new KafkaStreams(topology, kafka);
        Health health = new Health(Clock.systemUTC());
        streams.setUncaughtExceptionHandler(error -> {
            StreamThreadExceptionResponse response = health.failed(error);
            Utils.sleep(RETRY_MILLIS);
            return response;
        });
        streams.setStateListener((now, before) -> {
            if (now == KafkaStreams.State.ERROR) {
                // Threads go on failing, or the one that reads the items failed, which cannot be replaced: a supervisor
                // starts the process again.
                Log.exit(1);
            }
        });
        // Java's own status after SIGTERM is 143.
        Runtime.getRuntime().addShutdownHook(new Thread(() -> Log.exit(streams.close(STOP_TIMEOUT) ? 0 : 1)));
        Server server = new Server(streams, registry, health, metrics(streams));
        server.serveProbes(settings.address("PROBE_ADDR"));
        // Without an issuer of tokens it knows no callers, and answers everybody who reaches the port.
        Handler callers = settings.text("TOKEN_ISSUER") == null ? request -> {} : new Callers(settings);
        server.serveApi(settings.address("HTTP_ADDR"), settings.isApiEncrypted() ? tls : null, callers);
        streams.start();
    }

    /** Those of Kafka by its own names, and what the other services have too. */
    private static PrometheusMeterRegistry metrics(KafkaStreams streams) {
        PrometheusMeterRegistry metrics = new PrometheusMeterRegistry(PrometheusConfig.DEFAULT);
        Metrics.addRegistry(metrics);
        // Of the thousands of metrics of Streams and of Kafka's clients, those that tell whether it works.
        metrics.config().meterFilter(MeterFilter.acceptNameStartsWith("kafka.stream.task.dropped"))
                .meterFilter(MeterFilter.acceptNameStartsWith("kafka.consumer.fetch.manager.records.lag"))
                .meterFilter(MeterFilter.denyNameStartsWith("kafka"));
        new KafkaStreamsMetrics(streams).bindTo(metrics);
        new UptimeMetrics().bindTo(metrics);
        String version = Main.class.getPackage().getImplementationVersion();
        Gauge.builder("build.info", () -> 1).tag("version", version).register(metrics);
        return metrics;
    }
}
