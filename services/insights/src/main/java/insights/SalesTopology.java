package insights;

import insights.Sum.Decided;
import insights.Sum.Sale;
import io.micrometer.core.instrument.Metrics;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.List;
import org.apache.avro.generic.GenericRecord;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Grouped;
import org.apache.kafka.streams.kstream.KGroupedStream;
import org.apache.kafka.streams.kstream.KStream;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Named;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.kstream.Repartitioned;
import org.apache.kafka.streams.kstream.TimeWindows;
import org.apache.kafka.streams.kstream.Windowed;
import org.apache.kafka.streams.processor.api.ContextualFixedKeyProcessor;
import org.apache.kafka.streams.processor.api.ContextualProcessor;
import org.apache.kafka.streams.processor.api.FixedKeyProcessor;
import org.apache.kafka.streams.processor.api.FixedKeyProcessorSupplier;
import org.apache.kafka.streams.processor.api.FixedKeyRecord;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.Stores;
import org.apache.kafka.streams.state.WindowStore;

/** The way from the events of orders to the sums, by item and by outcome. */
record SalesTopology(Events contracts) {
    private static final Duration MINUTE = Duration.ofMinutes(1);
    /** How long a minute stays open for what arrives out of order, in event time. */
    private static final Duration GRACE = Duration.ofMinutes(10);
    /** How long an order is remembered: the retention of the topics of its events. */
    static final Duration ORDERS_RETENTION = Duration.ofDays(14);
    /** How long the sums of a minute can be asked for. */
    private static final Duration MINUTES_RETENTION = Duration.ofDays(1);
    /** The stores of the sums: `sales-by-minute`, `outcomes-total`, and so on. */
    static final String BY_MINUTE = "-by-minute";
    static final String TOTAL = "-total";
    static final String LATE_TOTAL = "-late-total";
    /** The store of the names of items, by SKU. */
    private static final String NAMES = "item-names";
    static final String SALES = "insights.sales";
    static final String OUTCOMES = "insights.outcomes";

    /** A record without a key cannot be decoded: it belongs to no order and to no item. */
    private static final Serde<String> KEYS = Serdes.serdeFrom(
            Serdes.String().serializer(), (topic, bytes) -> new String(bytes, StandardCharsets.UTF_8));

    Topology build() {
        StreamsBuilder builder = new StreamsBuilder();
        Serde<GenericRecord> events = Serdes.serdeFrom(contracts, contracts::deserialize);
        builder.addStateStore(Stores.windowStoreBuilder(
                Stores.persistentWindowStore(OrderSteps.STORE, ORDERS_RETENTION, MINUTE, false),
                Serdes.String(), Sum.serde(OrderSteps.Order.class)));
        Consumed<String, GenericRecord> read =
                Consumed.with(KEYS, events).withTimestampExtractor(SalesTopology::occurredAt);
        KStream<String, Sum<?>> steps = builder
                .stream(List.of("orders.created", "orders.confirmed", "orders.cancelled"), read.withName("orders"))
                .process(OrderSteps::new, Named.as("order-steps"), OrderSteps.STORE);
        builder.addGlobalStore(Stores.keyValueStoreBuilder(
                Stores.persistentKeyValueStore(NAMES), Serdes.String(), Serdes.String()),
                "stock.items", Consumed.with(KEYS, events).withName("items"), SalesTopology::rememberName);
        sums("sales", steps, Sale.class)
                .processValues(this::nameSales, Named.as("sales-named"))
                .selectKey((item, event) -> event.get("sku").toString(), Named.as("sales-by-sku"))
                .to(SALES, Produced.with(Serdes.String(), events).withName("sales-events"));
        sums("outcomes", steps, Decided.class)
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
    private <S extends Sum<S>> KStream<Windowed<String>, S> sums(
            String name, KStream<String, Sum<?>> steps, Class<S> type) {
        Serde<S> serde = Sum.serde(type);
        KStream<String, S> all = steps.filter((key, step) -> type.isInstance(step), Named.as(name + "-of-orders"))
                .mapValues(type::cast, Named.as(name + "-typed"))
                .repartition(Repartitioned.with(Serdes.String(), serde).withName(name));
        KGroupedStream<String, S> onTime = punctual(all, name + "-on-time", false, serde);
        KGroupedStream<String, S> late = punctual(all, name + "-late", true, serde);
        late.reduce(Sum::plus, Named.as(name + "-sum-late"), Materialized.as(name + LATE_TOTAL));
        onTime.reduce(Sum::plus, Named.as(name + "-sum"), Materialized.as(name + TOTAL));
        return onTime.windowedBy(TimeWindows.ofSizeAndGrace(MINUTE, GRACE))
                .reduce(Sum::plus, Named.as(name + "-sum-by-minute"), Materialized
                        .<String, S, WindowStore<Bytes, byte[]>>as(name + BY_MINUTE).withRetention(MINUTES_RETENTION))
                .toStream(Named.as(name + "-minutes"));
    }

    /** Of what arrives, only what is late for its minute, or only what is not. */
    private static <S> KGroupedStream<String, S> punctual(
            KStream<String, S> all, String name, boolean isLateWanted, Serde<S> serde) {
        FixedKeyProcessorSupplier<String, S, S> filter = () -> new ContextualFixedKeyProcessor<>() {
            @Override
            public void process(FixedKeyRecord<String, S> record) {
                // The rule by which Streams closes a window. It drops what is late; here it is known before.
                long minute = record.timestamp() - record.timestamp() % MINUTE.toMillis();
                if (minute + MINUTE.plus(GRACE).toMillis() <= context().currentStreamTimeMs() == isLateWanted) {
                    context().forward(record);
                    Metrics.counter("facts.summed", "sum", name).increment();
                }
            }
        };
        return all.processValues(filter, Named.as(name)).groupByKey(Grouped.with(Serdes.String(), serde));
    }

    /**
     * Decodes an item before it is stored, also while its store is restored. A global table stores the bytes, restores
     * them past the handler of undecodable records, and fails at the first sale of the item.
     */
    private static Processor<String, GenericRecord, Void, Void> rememberName() {
        return new ContextualProcessor<>() {
            @Override
            public void process(Record<String, GenericRecord> item) {
                KeyValueStore<String, String> names = context().getStateStore(NAMES);
                names.put(item.key(), item.value().get("name").toString());
            }
        };
    }

    private FixedKeyProcessor<Windowed<String>, Sale, GenericRecord> nameSales() {
        return new ContextualFixedKeyProcessor<>() {
            @Override
            public void process(FixedKeyRecord<Windowed<String>, Sale> record) {
                String[] currencyAndSku = record.key().key().split(" ", 2);
                KeyValueStore<String, String> names = context().getStateStore(NAMES);
                Sale sale = record.value();
                context().forward(record.withValue(contracts.event(SALES, currencyAndSku[1],
                        names.get(currencyAndSku[1]), currencyAndSku[0], record.key().window().start() * 1000,
                        sale.orders(), sale.units(), sale.revenueCents())));
            }
        };
    }

    private GenericRecord orderOutcomes(Windowed<String> outcome, Decided decided) {
        return contracts.event(OUTCOMES, outcome.key(), outcome.window().start() * 1000,
                decided.orders(), decided.timedOrders(), decided.millisSum(), decided.millisMax());
    }
}
