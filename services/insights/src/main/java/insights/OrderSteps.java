package insights;

import insights.Sum.Decided;
import insights.Sum.Sale;
import io.micrometer.core.instrument.Metrics;
import java.util.List;
import org.apache.avro.generic.GenericRecord;
import org.apache.kafka.streams.processor.api.ContextualProcessor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.WindowStore;
import org.apache.kafka.streams.state.WindowStoreIterator;

/**
 * Passes on the decision of each order once by its outcome, its sales once by currency and SKU, and the time to the
 * decision once both its beginning and its decision are known, in whatever order they arrive. A repeat is recognised
 * by the store. The store keeps an order for as long as an event of it is accepted, so an event that is too old to be
 * recognised is not accepted either.
 */
final class OrderSteps extends ContextualProcessor<String, GenericRecord, String, Sum<?>> {
    static final String STORE = "orders";

    /** What is known of an order. */
    record Order(Long createdAt, Long decidedAt, String outcome) {}

    private static final long RETENTION_MILLIS = SalesTopology.ORDERS_RETENTION.toMillis();

    private WindowStore<String, Order> orders;

    @Override
    public void init(ProcessorContext<String, Sum<?>> context) {
        super.init(context);
        orders = context.getStateStore(STORE);
    }

    @Override
    public void process(Record<String, GenericRecord> record) {
        GenericRecord event = record.value();
        String type = event.getSchema().getName();
        boolean isCreation = type.equals("OrderCreated");
        long now = context().currentStreamTimeMs();
        Order known = newest(record.key(), now);
        boolean isExpired = record.timestamp() <= now - RETENTION_MILLIS;
        boolean isRepeat = (isCreation ? known.createdAt : known.decidedAt) != null;
        String fate = isExpired ? "expired" : isRepeat ? "deduplicated" : "handled";
        Metrics.counter("events." + fate, "event", type).increment();
        if (isExpired || isRepeat) {
            return;
        }
        String outcome = event.hasField("reason") ? event.get("reason").toString() : "confirmed";
        Order order = isCreation ? new Order(record.timestamp(), known.decidedAt, known.outcome)
                : new Order(known.createdAt, record.timestamp(), outcome);
        boolean isDecided = order.decidedAt != null;
        orders.put(record.key(), order, isDecided ? order.decidedAt : order.createdAt);
        if (isDecided) {
            Decided decided = decided(order, isCreation);
            context().forward(new Record<>(order.outcome, decided, order.decidedAt, record.headers()));
        }
        if (type.equals("OrderConfirmed")) {
            forwardSales(record);
        }
    }

    private Order newest(String id, long now) {
        try (WindowStoreIterator<Order> found = orders.backwardFetch(id, now - RETENTION_MILLIS + 1, now)) {
            return found.hasNext() ? found.next().value : new Order(null, null, null);
        }
    }

    private static Decided decided(Order order, boolean isCounted) {
        boolean isTimed = order.createdAt != null;
        long millis = isTimed ? Math.max(0, order.decidedAt - order.createdAt) : 0;
        return new Decided(isCounted ? 0 : 1, isTimed ? 1 : 0, millis, millis);
    }

    private void forwardSales(Record<String, GenericRecord> confirmed) {
        for (Object each : (List<?>) confirmed.value().get("lines")) {
            GenericRecord line = (GenericRecord) each;
            long units = (Integer) line.get("quantity");
            Sale sale = new Sale(1, units, units * (Long) line.get("unit_price_cents"));
            String item = confirmed.value().get("currency") + " " + line.get("sku");
            context().forward(confirmed.withKey(item).withValue(sale));
        }
    }
}
