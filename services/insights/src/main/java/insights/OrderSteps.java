package insights;

import insights.Sum.Decided;
import insights.Sum.Sale;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.apache.avro.generic.GenericRecord;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.WindowStore;
import org.apache.kafka.streams.state.WindowStoreIterator;

/**
 * Passes on the decision of each order once, and the time to it once both its beginning and its decision are known,
 * in whatever order they arrive. A repeat is recognised by the store. The store keeps an order for as long as an
 * event of it is accepted, so an event that is too old to be recognised is not accepted either.
 */
final class OrderSteps implements Processor<String, GenericRecord, String, OrderSteps.Step> {
    static final String STORE = "orders";

    /** What is known of an order. */
    record Order(Long createdAt, Long decidedAt, String outcome) {}

    /** What an event added: the sales by currency and SKU, and the order's end or its duration. */
    record Step(Map<String, Sale> sales, String outcome, Decided decided) {}

    private static final long RETENTION_MILLIS = SalesTopology.ORDERS_RETENTION.toMillis();

    private ProcessorContext<String, Step> context;
    private WindowStore<String, Order> orders;

    @Override
    public void init(ProcessorContext<String, Step> context) {
        this.context = context;
        orders = context.getStateStore(STORE);
    }

    @Override
    public void process(Record<String, GenericRecord> record) {
        GenericRecord event = record.value();
        String type = event.getSchema().getName();
        boolean isCreation = type.equals("OrderCreated");
        long now = context.currentStreamTimeMs();
        if (record.timestamp() <= now - RETENTION_MILLIS) {
            Metrics.count("events_expired_total", "event", type);
            return;
        }
        Order known = newest(record.key(), now);
        if ((isCreation ? known.createdAt : known.decidedAt) != null) {
            Metrics.count("events_deduplicated_total", "event", type);
            return;
        }
        Order order = isCreation ? new Order(record.timestamp(), known.decidedAt, known.outcome)
                : new Order(known.createdAt, record.timestamp(), outcome(event));
        boolean isDecided = order.decidedAt != null;
        orders.put(record.key(), order, isDecided ? order.decidedAt : order.createdAt);
        Metrics.count("events_handled_total", "event", type);
        if (isDecided) {
            Map<String, Sale> sales = type.equals("OrderConfirmed") ? sales(event) : Map.of();
            Step step = new Step(sales, order.outcome, decided(order, isCreation));
            context.forward(record.withValue(step).withTimestamp(order.decidedAt));
        }
    }

    private Order newest(String id, long now) {
        Order newest = new Order(null, null, null);
        try (WindowStoreIterator<Order> found = orders.fetch(id, now - RETENTION_MILLIS + 1, now)) {
            while (found.hasNext()) {
                newest = found.next().value;
            }
        }
        return newest;
    }

    private static String outcome(GenericRecord event) {
        return event.hasField("reason") ? event.get("reason").toString() : "confirmed";
    }

    private static Decided decided(Order order, boolean isCounted) {
        boolean isTimed = order.createdAt != null;
        long millis = isTimed ? Math.max(0, order.decidedAt - order.createdAt) : 0;
        return new Decided(isCounted ? 0 : 1, isTimed ? 1 : 0, millis, millis);
    }

    private static Map<String, Sale> sales(GenericRecord event) {
        Map<String, Sale> sales = new LinkedHashMap<>();
        for (Object each : (List<?>) event.get("lines")) {
            GenericRecord line = (GenericRecord) each;
            long units = (Integer) line.get("quantity");
            Sale sale = new Sale(1, units, units * (Long) line.get("unit_price_cents"));
            sales.put(event.get("currency") + " " + line.get("sku"), sale);
        }
        return sales;
    }
}
