package insights;

import com.fasterxml.jackson.databind.node.ObjectNode;
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import com.sun.net.httpserver.HttpsConfigurator;
import com.sun.net.httpserver.HttpsServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.time.Duration;
import java.time.Instant;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.Executors;
import javax.net.ssl.SSLContext;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StoreQueryParameters;
import org.apache.kafka.streams.errors.InvalidStateStoreException;
import org.apache.kafka.streams.kstream.Windowed;
import org.apache.kafka.streams.state.KeyValueIterator;
import org.apache.kafka.streams.state.QueryableStoreTypes;
import org.apache.kafka.streams.state.ReadOnlyKeyValueStore;
import org.apache.kafka.streams.state.ReadOnlyWindowStore;

/** The sums over HTTP, and the port of the probes. The sums are asked of the stores: interactive queries. */
record Server(KafkaStreams streams) {
    private static final int THREADS = 4;

    private record Reply(int status, String type, String body) {}

    private interface Route {
        Reply reply(String query);
    }

    void serveProbes(InetSocketAddress address) throws IOException {
        serve(HttpServer.create(address, 0), Map.of(
                "/livez", query -> health(streams.state() != KafkaStreams.State.ERROR),
                "/readyz", query -> health(streams.state() == KafkaStreams.State.RUNNING),
                "/metrics", query -> new Reply(200, "text/plain; version=0.0.4", Metrics.text(streams))));
    }

    void serveApi(InetSocketAddress address, SSLContext tls) throws IOException {
        HttpServer server = tls == null ? HttpServer.create(address, 0) : HttpsServer.create(address, 0);
        if (server instanceof HttpsServer secure) {
            secure.setHttpsConfigurator(new HttpsConfigurator(tls));
        }
        serve(server, Map.of("/sales", query -> sums("sales", query), "/outcomes", query -> sums("outcomes", query)));
    }

    private static void serve(HttpServer server, Map<String, Route> routes) {
        server.createContext("/", exchange -> answer(exchange, routes.get(exchange.getRequestURI().getPath())));
        server.setExecutor(Executors.newFixedThreadPool(THREADS));
        server.start();
    }

    private static void answer(HttpExchange exchange, Route route) throws IOException {
        Reply reply = problem(route == null ? 404 : 405, "this port answers GET of a few paths");
        if (route != null && exchange.getRequestMethod().equals("GET")) {
            try {
                reply = route.reply(exchange.getRequestURI().getQuery());
            } catch (InvalidStateStoreException error) {
                reply = problem(503, "the stores are being restored");
            }
        }
        try (exchange) {
            byte[] body = reply.body.getBytes();
            exchange.getResponseHeaders().set("content-type", reply.type);
            exchange.sendResponseHeaders(reply.status, body.length);
            exchange.getResponseBody().write(body);
        }
    }

    private static Reply problem(int status, String detail) {
        ObjectNode body = Sum.JSON.createObjectNode().put("status", status).put("detail", detail);
        return new Reply(status, "application/problem+json", body.toString());
    }

    private Reply health(boolean isHealthy) {
        return isHealthy ? new Reply(200, "text/plain", "ok\n") : problem(503, "the streams are " + streams.state());
    }

    /** The sums of the last minutes, and those since the beginning: what was on time, and what was late. */
    private Reply sums(String name, String query) {
        String asked = query == null ? "minutes=60" : query;
        if (!asked.matches("minutes=\\d{1,4}")) {
            return problem(400, "minutes must be a number up to 9999");
        }
        Instant now = Instant.now();
        Instant from = now.minus(Duration.ofMinutes(Long.parseLong(asked.substring("minutes=".length()))));
        Map<String, ObjectNode> minutes = new TreeMap<>();
        ReadOnlyWindowStore<String, Object> store = streams.store(StoreQueryParameters.fromNameAndType(
                name + SalesTopology.BY_MINUTE, QueryableStoreTypes.windowStore()));
        try (KeyValueIterator<Windowed<String>, Object> found = store.fetchAll(from, now)) {
            found.forEachRemaining(sum -> {
                String minute = sum.key.window().startTime().toString();
                ObjectNode row = Sum.JSON.createObjectNode().put("minute", minute).put("key", sum.key.key());
                minutes.put(minute + sum.key.key(), row.setAll((ObjectNode) Sum.JSON.valueToTree(sum.value)));
            });
        }
        Map<String, ObjectNode> totals = new TreeMap<>();
        collect(name + SalesTopology.TOTAL, "on_time", totals);
        collect(name + SalesTopology.LATE_TOTAL, "late", totals);
        ObjectNode reply = Sum.JSON.createObjectNode();
        reply.putArray("minutes").addAll(minutes.values());
        reply.putArray("totals").addAll(totals.values());
        return new Reply(200, "application/json", reply.toString());
    }

    private void collect(String name, String field, Map<String, ObjectNode> rows) {
        ReadOnlyKeyValueStore<String, Object> store = streams.store(
                StoreQueryParameters.fromNameAndType(name, QueryableStoreTypes.keyValueStore()));
        try (KeyValueIterator<String, Object> found = store.all()) {
            found.forEachRemaining(sum -> rows
                    .computeIfAbsent(sum.key, key -> Sum.JSON.createObjectNode().put("key", key))
                    .set(field, Sum.JSON.valueToTree(sum.value)));
        }
    }
}
