package insights;

import io.javalin.Javalin;
import io.javalin.config.RoutesConfig;
import io.javalin.http.Context;
import io.javalin.http.Handler;
import io.javalin.json.JavalinJackson;
import io.micrometer.prometheusmetrics.PrometheusMeterRegistry;
import java.net.InetSocketAddress;
import java.time.Instant;
import java.util.Map;
import java.util.Optional;
import java.util.TreeMap;
import java.util.function.Consumer;
import javax.net.ssl.SSLContext;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StoreQueryParameters;
import org.apache.kafka.streams.errors.InvalidStateStoreException;
import org.apache.kafka.streams.kstream.Windowed;
import org.apache.kafka.streams.state.KeyValueIterator;
import org.apache.kafka.streams.state.QueryableStoreTypes;
import org.apache.kafka.streams.state.ReadOnlyKeyValueStore;
import org.apache.kafka.streams.state.ReadOnlyWindowStore;
import org.eclipse.jetty.server.HttpConnectionFactory;
import org.eclipse.jetty.server.ServerConnector;
import org.eclipse.jetty.util.ssl.SslContextFactory;

/** The sums over HTTP, and the port of the probes. The sums are asked of the stores: interactive queries. */
record Server(KafkaStreams streams, SchemaRegistry registry, Health health, PrometheusMeterRegistry metrics) {
    void serveProbes(InetSocketAddress address) {
        serve(address, null, routes -> routes
                .get("/livez", request -> answer(request, streams.state() != KafkaStreams.State.ERROR, state()))
                .get("/readyz", request -> {
                    Optional<String> obstacle = obstacle();
                    answer(request, obstacle.isEmpty(), obstacle.orElse(state()));
                })
                .get("/metrics", request -> request.result(metrics.scrape())));
    }

    /** Without TLS it is HTTP. */
    void serveApi(InetSocketAddress address, SSLContext tls, Handler callers) {
        serve(address, tls, routes -> routes
                .before(callers)
                .get("/sales", request -> request.json(sums("sales", request)))
                .get("/outcomes", request -> request.json(sums("outcomes", request)))
                // While they are being restored.
                .exception(InvalidStateStoreException.class, (error, request) -> answer(request, false, state())));
    }

    private static void serve(InetSocketAddress address, SSLContext tls, Consumer<RoutesConfig> routes) {
        Javalin.create(config -> {
            config.http.prefer405over404 = true;
            config.jsonMapper(new JavalinJackson(Sum.JSON, false));
            config.jetty.addConnector((server, http) -> {
                SslContextFactory.Server secure = new SslContextFactory.Server();
                secure.setSslContext(tls);
                ServerConnector connector = new ServerConnector(
                        server, tls == null ? null : secure, new HttpConnectionFactory(http));
                connector.setHost(address.getHostString());
                connector.setPort(address.getPort());
                return connector;
            });
            routes.accept(config.routes);
        }).start();
    }

    private static void answer(Context request, boolean isHealthy, String text) {
        request.status(isHealthy ? 200 : 503).result(text);
    }

    private String state() {
        return "the streams are " + streams.state();
    }

    /** Why it does not process. Streams whose threads wait or fail, or that reach no broker, count as running. */
    private Optional<String> obstacle() {
        return health.failure()
                .or(() -> registry.awaited().map(what -> "waiting for the schema registry: " + what))
                .or(() -> Optional.of(state()).filter(state -> streams.state() != KafkaStreams.State.RUNNING))
                .or(() -> Optional.of("no connection to Kafka").filter(reason -> connections() == 0));
    }

    private double connections() {
        return streams.metrics().values().stream()
                .filter(metric -> metric.metricName().group().equals("consumer-metrics"))
                .filter(metric -> metric.metricName().name().equals("connection-count"))
                .mapToDouble(metric -> (Double) metric.metricValue()).sum();
    }

    /** The sums of the last minutes, and those since the beginning: what was on time, and what was late. */
    private Map<String, Map<String, ?>> sums(String name, Context request) {
        Instant now = Instant.now();
        Instant from = now.minusSeconds(60L * request.queryParamAsClass("minutes", Integer.class).getOrDefault(60));
        Map<String, Map<String, Object>> minutes = new TreeMap<>();
        ReadOnlyWindowStore<String, Object> store = streams.store(StoreQueryParameters.fromNameAndType(
                name + SalesTopology.BY_MINUTE, QueryableStoreTypes.windowStore()));
        try (KeyValueIterator<Windowed<String>, Object> found = store.fetchAll(from, now)) {
            found.forEachRemaining(sum -> minutes
                    .computeIfAbsent(sum.key.window().startTime().toString(), minute -> new TreeMap<>())
                    .put(sum.key.key(), sum.value));
        }
        return new TreeMap<>(Map.of("minutes", minutes, "on_time", totals(name + SalesTopology.TOTAL),
                "late", totals(name + SalesTopology.LATE_TOTAL)));
    }

    private Map<String, Object> totals(String name) {
        Map<String, Object> totals = new TreeMap<>();
        ReadOnlyKeyValueStore<String, Object> store = streams.store(
                StoreQueryParameters.fromNameAndType(name, QueryableStoreTypes.keyValueStore()));
        try (KeyValueIterator<String, Object> found = store.all()) {
            found.forEachRemaining(sum -> totals.put(sum.key, sum.value));
        }
        return totals;
    }
}
