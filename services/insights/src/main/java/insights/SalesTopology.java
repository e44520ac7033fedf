package insights;

import insights.Sum.Decided;
import insights.Sum.Sale;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.List;
import org.apache.avro.generic.GenericRecord;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.KeyValue;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.GlobalKTable;
import org.apache.kafka.streams.kstream.KGroupedStream;
import org.apache.kafka.streams.kstream.KStream;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Named;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.kstream.Repartitioned;
import org.apache.kafka.streams.kstream.TimeWindows;
import org.apache.kafka.streams.kstream.Windowed;
import org.apache.kafka.streams.processor.api.ContextualFixedKeyProcessor;
import org.apache.kafka.streams.processor.api.FixedKeyProcessorSupplier;
import org.apache.kafka.streams.processor.api.FixedKeyRecord;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.Stores;
import org.apache.kafka.streams.state.WindowStore;

/** The way from the events of orders to the sums, by item and by outcome. */
final class SalesTopology {
    static final Duration MINUTE = Duration.ofMinutes(1);
    /** How long an order is remembered: the retention of the topics of its events. */
    static final Duration ORDERS_RETENTION = Duration.ofDays(14);
    /** How long the sums of a minute can be asked for. */
    private static final Duration MINUTES_RETENTION = Duration.ofDays(1);
    /** The stores of the sums: `sales-by-minute`, `outcomes-total`, and so on. */
    static final String BY_MINUTE = "-by-minute";
    static final String TOTAL = "-total";
    static final String LATE_TOTAL = "-late-total";
    static final List<String> ORDER_TOPICS = List.of("orders.created", "orders.confirmed", "orders.cancelled");
    static final String ITEMS = "stock.items";
    static final String SALES = "insights.sales";
    static final String OUTCOMES = "insights.outcomes";
    static final List<String> PUBLISHED = List.of(SALES, OUTCOMES);

    private final StreamsBuilder builder = new StreamsBuilder();
    /** A record without a key cannot be decoded: it belongs to no order and to no item. */
    private final Serde<String> keys = Serdes.serdeFrom(
            Serdes.String().serializer(), (topic, bytes) -> new String(bytes, StandardCharsets.UTF_8));
    private final Serde<GenericRecord> events;
    private final Events contracts;
    /** How long a minute stays open for what arrives out of order. */
    private final Duration grace;

    SalesTopology(Events contracts, Duration grace) {
        this.contracts = contracts;
        this.grace = grace;
        events = Serdes.serdeFrom(contracts, contracts::deserialize);
    }

    Topology build() {
        builder.addStateStore(Stores.windowStoreBuilder(
                Stores.persistentWindowStore(OrderSteps.STORE, ORDERS_RETENTION, MINUTE, false),
                Serdes.String(), Sum.serde(OrderSteps.Order.class)));
        Consumed<String, GenericRecord> read =
                Consumed.with(keys, events).withTimestampExtractor(SalesTopology::occurredAt);
        KStream<String, OrderSteps.Step> steps = builder.stream(ORDER_TOPICS, read.withName("order-events"))
                .process(OrderSteps::new, Named.as("order-steps"), OrderSteps.STORE);
        GlobalKTable<String, GenericRecord> items =
                builder.globalTable(ITEMS, read.withName("item-events"), Materialized.as("items"));

        KStream<String, Sale> sales = steps.flatMap(
                (order, step) -> step.sales().entrySet().stream()
                        .map(sale -> KeyValue.pair(sale.getKey(), sale.getValue())).toList(),
                Named.as("sales-of-order"));
        sums("sales", sales, Sale.class)
                .leftJoin(items, (item, sale) -> sku(item.key()), this::itemSales, Named.as("sales-with-name"))
                .selectKey((item, event) -> sku(item.key()), Named.as("sales-by-sku"))
                .to(SALES, Produced.with(Serdes.String(), events).withName("sales-events"));

        KStream<String, Decided> outcomes = steps.map(
                (order, step) -> KeyValue.pair(step.outcome(), step.decided()), Named.as("outcome-of-order"));
        sums("outcomes", outcomes, Decided.class)
                .mapValues(this::orderOutcomes, Named.as("outcomes-with-minute"))
                .selectKey((outcome, event) -> outcome.key(), Named.as("outcomes-by-outcome"))
                .to(OUTCOMES, Produced.with(Serdes.String(), events).withName("outcome-events"));
        return builder.build();
    }

    /**
     * When the event happened, by the clock of its publisher, but not after it arrived: a clock that is ahead would
     * close the minutes of all other orders.
     */
    static long occurredAt(ConsumerRecord<Object, Object> record, long partitionTime) {
        long micros = (Long) ((GenericRecord) record.value()).get("occurred_at");
        return Math.min(micros / 1000, record.timestamp());
    }

    /** Sums by key and minute, and for all time. What is late for its minute is summed apart. */
    private <S extends Sum<S>> KStream<Windowed<String>, S> sums(String name, KStream<String, S> facts, Class<S> type) {
        Serde<S> serde = Sum.serde(type);
        KStream<String, S> all = facts.repartition(Repartitioned.with(Serdes.String(), serde).withName(name));
        KGroupedStream<String, S> onTime = punctual(all, name + "-on-time", false);
        KGroupedStream<String, S> late = punctual(all, name + "-late", true);
        late.reduce(Sum::plus, Named.as(name + "-sum-late"), total(name + LATE_TOTAL, serde));
        onTime.reduce(Sum::plus, Named.as(name + "-sum"), total(name + TOTAL, serde));
        Materialized<String, S, WindowStore<Bytes, byte[]>> byMinute = Materialized.as(name + BY_MINUTE);
        return onTime.windowedBy(TimeWindows.ofSizeAndGrace(MINUTE, grace))
                .reduce(Sum::plus, Named.as(name + "-sum-by-minute"),
                        byMinute.withKeySerde(Serdes.String()).withValueSerde(serde).withRetention(MINUTES_RETENTION))
                .toStream(Named.as(name + "-minutes"));
    }

    private static <S> Materialized<String, S, KeyValueStore<Bytes, byte[]>> total(String store, Serde<S> serde) {
        Materialized<String, S, KeyValueStore<Bytes, byte[]>> total = Materialized.as(store);
        return total.withKeySerde(Serdes.String()).withValueSerde(serde);
    }

    /** Of what arrives, only what is late for its minute, or only what is not. */
    private <S> KGroupedStream<String, S> punctual(KStream<String, S> all, String name, boolean isLateWanted) {
        FixedKeyProcessorSupplier<String, S, S> filter = () -> new ContextualFixedKeyProcessor<>() {
            @Override
            public void process(FixedKeyRecord<String, S> record) {
                if (isLate(record.timestamp(), context().currentStreamTimeMs()) == isLateWanted) {
                    context().forward(record);
                    Metrics.count("facts_summed_total", "sum", name);
                }
            }
        };
        return all.processValues(filter, Named.as(name)).groupByKey();
    }

    /** The same rule by which Streams closes a window. It drops what is late; here it is known before. */
    private boolean isLate(long at, long now) {
        long end = at - at % MINUTE.toMillis() + MINUTE.toMillis();
        return end + grace.toMillis() <= now;
    }

    private static String sku(String item) {
        return item.substring(item.indexOf(' ') + 1);
    }

    private GenericRecord itemSales(Windowed<String> item, Sale sale, GenericRecord known) {
        Object name = known == null ? null : known.get("name");
        return contracts.event(SALES, sku(item.key()), name, item.key().split(" ")[0], item.window().start() * 1000,
                sale.orders(), sale.units(), sale.revenueCents());
    }

    private GenericRecord orderOutcomes(Windowed<String> outcome, Decided decided) {
        return contracts.event(OUTCOMES, outcome.key(), outcome.window().start() * 1000,
                decided.orders(), decided.timedOrders(), decided.millisSum(), decided.millisMax());
    }
}
