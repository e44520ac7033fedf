package insights;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import insights.Sum.Decided;
import insights.Sum.Sale;
import io.micrometer.core.instrument.Metrics;
import io.micrometer.core.instrument.simple.SimpleMeterRegistry;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.time.Instant;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Random;
import org.apache.avro.generic.GenericRecord;
import org.apache.kafka.common.header.Headers;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.apache.kafka.common.serialization.StringSerializer;
import org.apache.kafka.streams.TopologyTestDriver;
import org.apache.kafka.streams.kstream.Windowed;
import org.apache.kafka.streams.state.KeyValueIterator;
import org.apache.kafka.streams.state.ValueAndTimestamp;
import org.apache.kafka.streams.test.TestRecord;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class SalesTopologyTest {
    private static final long START = Instant.parse("2026-11-02T10:00:00Z").toEpochMilli();
    private static final long SECOND = 1_000;
    private static final long MINUTE = 60 * SECOND;
    private static final long DAY = 24 * 60 * MINUTE;
    private static final String CONFIRMED = "orders.confirmed";
    private static final String PEN = "EUR pen";

    private final PublishedEvents published = new PublishedEvents();
    private TopologyTestDriver driver;

    @TempDir
    private Path state;

    @BeforeAll
    static void countEvents() {
        Metrics.addRegistry(new SimpleMeterRegistry());
    }

    @BeforeEach
    void start() throws IOException {
        Settings settings = Settings.of(Map.of(
                "KAFKA_BOOTSTRAP_SERVERS", "none:9092", "SCHEMA_REGISTRY_URL", "http://none",
                "STATE_DIRECTORY", state.toString()));
        Properties properties = new Properties();
        properties.putAll(settings.values().originalsWithPrefix("kafka."));
        driver = new TopologyTestDriver(new SalesTopology(published.events()).build(), properties);
    }

    @AfterEach
    void stop() {
        driver.close();
    }

    @Test
    void anOrderIsInTheSumsOfItsItemsAndItsOutcome() {
        created("a", START);
        assertEquals(Map.of(), totals("sales-total"));
        confirmed("a", START + 3 * SECOND, 2, 150);
        confirmed("b", START + MINUTE, 1, 100);
        cancelled("c", START + MINUTE, "stock_rejected");

        assertEquals(Map.of(PEN, new Sale(2, 3, 400)), totals("sales-total"));
        assertEquals(
                Map.of(PEN + "@0", new Sale(1, 2, 300), PEN + "@1", new Sale(1, 1, 100)), minutes("sales-by-minute"));
        assertEquals(
                Map.of("confirmed", new Decided(2, 1, 3_000, 3_000), "stock_rejected", new Decided(1, 0, 0, 0)),
                totals("outcomes-total"));
    }

    @Test
    void aRepeatChangesNoSum() {
        double before = counted("events.deduplicated", "OrderConfirmed");
        created("a", START);
        confirmed("a", START + SECOND, 2, 150);
        Map<String, Object> sums = sums();
        for (int i = 0; i < 3; i++) {
            created("a", START);
            confirmed("a", START + SECOND, 2, 150);
        }
        assertEquals(sums, sums());
        assertEquals(before + 3, counted("events.deduplicated", "OrderConfirmed"));
    }

    @Test
    void aDecisionMayArriveBeforeItsOrder() {
        confirmed("a", START + 5 * SECOND, 2, 150);
        assertEquals(Map.of("confirmed", new Decided(1, 0, 0, 0)), totals("outcomes-total"));
        created("a", START);
        created("a", START);
        assertEquals(Map.of("confirmed", new Decided(1, 1, 5_000, 5_000)), totals("outcomes-total"));
        assertEquals(Map.of(PEN, new Sale(1, 2, 300)), totals("sales-total"));
        assertEquals(Map.of("confirmed@0", new Decided(1, 1, 5_000, 5_000)), minutes("outcomes-by-minute"));
    }

    @Test
    void whatIsLateForItsMinuteIsSummedApart() {
        confirmed("a", START, 1, 100);
        confirmed("b", START + 11 * MINUTE - 1, 2, 100);
        confirmed("c", START + SECOND, 4, 100);
        assertEquals(Map.of(PEN, new Sale(3, 7, 700)), totals("sales-total"));
        confirmed("d", START + 11 * MINUTE, 8, 100);
        confirmed("e", START + 2 * SECOND, 16, 100);
        cancelled("f", START + 2 * SECOND, "customer");

        assertEquals(Map.of(PEN, new Sale(4, 15, 1_500)), totals("sales-total"));
        assertEquals(Map.of(PEN, new Sale(1, 16, 1_600)), totals("sales-late-total"));
        assertEquals(new Sale(2, 5, 500), minutes("sales-by-minute").get(PEN + "@0"));
        assertEquals(
                Map.of("confirmed", new Decided(1, 0, 0, 0), "customer", new Decided(1, 0, 0, 0)),
                totals("outcomes-late-total"));
        assertEquals(0.0, dropped());
    }

    @Test
    void aRepublicationOfEverythingInAnyOrderChangesNoSum() {
        Random random = new Random(44);
        List<Runnable> all = new ArrayList<>();
        Sale[] books = {new Sale(0, 0, 0)};
        for (int i = 0; i < 300; i++) {
            String id = "order-" + i;
            long at = START + i * 7 * SECOND;
            int units = 1 + random.nextInt(5);
            all.add(() -> created(id, at));
            if (i % 3 == 0) {
                all.add(() -> cancelled(id, at + 2 * SECOND, "payment_declined"));
            } else {
                books[0] = books[0].plus(new Sale(1, units, units * 100));
                all.add(() -> confirmed(id, at + 2 * SECOND, units, 100));
            }
        }
        // Disorder of up to an hour, with repeats.
        for (int i = 0; i + 400 < all.size(); i += 100) {
            Collections.shuffle(all.subList(i, i + 400), random);
        }
        all.forEach(Runnable::run);
        Map<String, Object> sums = sums();
        Sale late = (Sale) totals("sales-late-total").get(PEN);
        Sale onTime = (Sale) totals("sales-total").get(PEN);
        assertTrue(late.orders() > 0 && onTime.orders() > 0, late + " " + onTime);
        assertEquals(books[0], onTime.plus(late));
        Decided declined = (Decided) totals("outcomes-total").get("payment_declined");
        declined = declined.plus((Decided) totals("outcomes-late-total").get("payment_declined"));
        assertEquals(new Decided(100, 100, 200_000, 2_000), declined);
        assertEquals(
                onTime, minutes("sales-by-minute").values().stream().map(Sale.class::cast).reduce(Sale::plus).get());

        Collections.shuffle(all, random);
        all.forEach(Runnable::run);
        assertEquals(sums, sums());
        assertEquals(0.0, dropped());
    }

    @Test
    void anEventThatIsOlderThanTheMemoryOfOrdersIsCountedAndNotAdded() {
        double before = counted("events.expired", "OrderConfirmed");
        confirmed("a", START, 1, 100);
        confirmed("b", START + 14 * DAY - 1, 2, 100);
        confirmed("a", START, 1, 100);
        assertEquals(before, counted("events.expired", "OrderConfirmed"));
        confirmed("c", START + 14 * DAY, 4, 100);
        Map<String, Object> sums = sums();
        confirmed("a", START, 1, 100);
        created("z", START);
        confirmed("z", START, 1, 100);
        assertEquals(sums, sums());
        assertEquals(new Sale(3, 7, 700), totals("sales-total").get(PEN));
        assertEquals(before + 2, counted("events.expired", "OrderConfirmed"));
    }

    @Test
    void anOrderMayWaitForItsDecisionAlmostAsLongAsItIsRemembered() {
        created("a", START);
        confirmed("a", START + 13 * DAY, 1, 100);
        created("b", START + 26 * DAY);
        confirmed("a", START + 13 * DAY, 1, 100);
        created("a", START);
        assertEquals(Map.of("confirmed", new Decided(1, 1, 13 * DAY, 13 * DAY)), totals("outcomes-total"));
    }

    @Test
    void anEventOfTheFutureCountsWhenItArrives() {
        published.confirmed("a", START + 400 * DAY, 1, 100).pipe(driver, START);
        confirmed("b", START, 2, 100);
        assertEquals(Map.of(PEN + "@0", new Sale(2, 3, 300)), minutes("sales-by-minute"));
    }

    @Test
    void aRecordThatCannotBeDecodedIsCountedAndTheOthersGoOn() {
        raw(CONFIRMED, "a", "no event".getBytes(StandardCharsets.UTF_8));
        raw(CONFIRMED, null, published.confirmed("a", START, 1, 100).bytes());
        byte[] cut = published.confirmed("a", START, 1, 100).bytes();
        raw(CONFIRMED, "a", Arrays.copyOf(cut, cut.length - 1));
        raw(CONFIRMED, "a", Arrays.copyOf(cut, cut.length + 1));
        raw(CONFIRMED, "a", Arrays.copyOf(cut, 3));
        raw(CONFIRMED, "a", null);
        confirmed("a", START, 1, 100);

        assertEquals(6.0, dropped());
        assertEquals(Map.of(PEN, new Sale(1, 1, 100)), totals("sales-total"));
    }

    @Test
    void aLaterVersionOfAPublisherIsRead() {
        published.laterCancelled("a", START, "fraud").pipe(driver, START);
        assertEquals(Map.of("unknown", new Decided(1, 0, 0, 0)), totals("outcomes-total"));
    }

    @Test
    void aTimeInAnotherUnitIsConvertedAndOneWithoutAUnitIsRefused() {
        for (Map.Entry<String, Long> unit : Map.of("timestamp-millis", 1L, "timestamp-nanos", 1_000_000L).entrySet()) {
            confirmedAt(unit.getKey(), "a" + unit, START * unit.getValue());
        }
        assertEquals(Map.of("confirmed@0", new Decided(2, 0, 0, 0)), minutes("outcomes-by-minute"));
        assertEquals(0.0, dropped());
        confirmedAt("", "b", START * 1_000);
        confirmedAt("local-timestamp-micros", "c", START * 1_000);
        confirmedAt("timestamp-millis", "d", Long.MAX_VALUE);
        assertEquals(3.0, dropped());
        assertEquals(Map.of("confirmed", new Decided(2, 0, 0, 0)), totals("outcomes-total"));
    }

    /** By a publisher whose schema has the time in this unit. */
    private void confirmedAt(String unit, String id, long time) {
        published.confirmed(id, unit, time).pipe(driver, START + MINUTE);
    }

    @Test
    void whatIsPublishedHasTheNameOfTheItemAndAnEnvelopeOfItsOwn() {
        confirmed("a", START, 1, 100);
        published.item("pen", "Fountain pen", START).pipe(driver, START);
        confirmed("b", START + SECOND, 2, 100);
        cancelled("c", START, "deadline");
        // The name that was known stays.
        raw("stock.items", "pen", "no event".getBytes(StandardCharsets.UTF_8));
        confirmed("d", START + 2 * SECOND, 4, 100);

        List<TestRecord<byte[], byte[]>> sales = produced(SalesTopology.SALES);
        assertEquals(3, sales.size());
        GenericRecord later = published.decode(SalesTopology.SALES, sales.get(2).value());
        assertEquals("Fountain pen", later.get("name").toString());
        assertNull(published.decode(SalesTopology.SALES, sales.get(0).value()).get("name"));
        GenericRecord event = published.decode(SalesTopology.SALES, sales.get(1).value());
        assertEquals("{\"sku\": \"pen\", \"name\": \"Fountain pen\", \"currency\": \"EUR\", \"minute\": " + START * 1000
                + ", \"orders\": 2, \"units\": 3, \"revenue_cents\": 300}", event.toString());
        assertEquals("pen", new String(sales.get(1).key(), StandardCharsets.UTF_8));
        assertEquals(SalesTopology.SALES, header(sales.get(1).headers(), "ce_type"));
        assertEquals("/insights", header(sales.get(1).headers(), "ce_source"));
        assertNull(sales.get(1).headers().lastHeader("traceparent"));
        GenericRecord outcome =
                published.decode(SalesTopology.OUTCOMES, produced(SalesTopology.OUTCOMES).get(2).value());
        assertEquals("{\"outcome\": \"deadline\", \"minute\": " + START * 1000
                + ", \"orders\": 1, \"timed_orders\": 0, \"decision_millis_sum\": 0, \"decision_millis_max\": 0}",
                outcome.toString());
    }

    @Test
    void noCustomerIsInAnyTopicOrStore() {
        created("a", START);
        confirmed("a", START, 1, 100);
        int records = 0;
        for (String topic : driver.producedTopicNames()) {
            for (TestRecord<byte[], byte[]> record : produced(topic)) {
                String text = new String(record.value(), StandardCharsets.UTF_8);
                assertFalse(text.contains(PublishedEvents.CUSTOMER), topic);
                records++;
            }
        }
        byte[] event = published.created("a", START).bytes();
        assertFalse(published.decode("orders.created", event).hasField("customer_id"));
        assertTrue(driver.producedTopicNames().contains("insights-orders-changelog"), "the stores are among them");
        assertTrue(records > 8, records + " records");
    }

    private void created(String id, long at) {
        published.created(id, at).pipe(driver, at + MINUTE);
    }

    private void confirmed(String id, long at, int units, long price) {
        published.confirmed(id, at, units, price).pipe(driver, at + MINUTE);
    }

    private void cancelled(String id, long at, String reason) {
        published.cancelled(id, at, reason).pipe(driver, at + MINUTE);
    }

    private void raw(String topic, String key, byte[] value) {
        driver.createInputTopic(topic, new StringSerializer(), new ByteArraySerializer()).pipeInput(key, value, START);
    }

    private List<TestRecord<byte[], byte[]>> produced(String topic) {
        return driver.createOutputTopic(topic, new ByteArrayDeserializer(), new ByteArrayDeserializer())
                .readRecordsToList();
    }

    private static String header(Headers headers, String name) {
        return new String(headers.lastHeader(name).value(), StandardCharsets.UTF_8);
    }

    private static double counted(String name, String event) {
        return Metrics.counter(name, "event", event).count();
    }

    /** What Streams has dropped, for instance as late. */
    private double dropped() {
        return driver.metrics().entrySet().stream()
                .filter(metric -> metric.getKey().name().equals("dropped-records-total"))
                .mapToDouble(metric -> (Double) metric.getValue().metricValue()).sum();
    }

    private Map<String, Object> sums() {
        Map<String, Object> sums = new HashMap<>();
        for (String name : List.of("sales", "outcomes")) {
            totals(name + "-total").forEach((key, sum) -> sums.put(name + key, sum));
            totals(name + "-late-total").forEach((key, sum) -> sums.put(name + " late " + key, sum));
            sums.putAll(minutes(name + "-by-minute"));
        }
        return sums;
    }

    private Map<String, Object> totals(String store) {
        Map<String, Object> totals = new HashMap<>();
        try (KeyValueIterator<String, Object> all = driver.<String, Object>getKeyValueStore(store).all()) {
            all.forEachRemaining(each -> totals.put(each.key, each.value));
        }
        return totals;
    }

    /** By key and the number of the minute since the start. */
    private Map<String, Object> minutes(String store) {
        Map<String, Object> minutes = new HashMap<>();
        try (KeyValueIterator<Windowed<String>, Object> all = driver.<String, Object>getWindowStore(store).all()) {
            all.forEachRemaining(each -> minutes.put(
                    each.key.key() + "@" + (each.key.window().start() - START) / MINUTE, each.value));
        }
        return minutes;
    }
}
