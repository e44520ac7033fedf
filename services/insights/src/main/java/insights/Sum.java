package insights;

import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.PropertyNamingStrategies;
import java.io.IOException;
import java.io.UncheckedIOException;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;

/** What is added up, for one key. */
interface Sum<S> {
    ObjectMapper JSON = new ObjectMapper().setPropertyNamingStrategy(PropertyNamingStrategies.SNAKE_CASE);

    S plus(S other);

    /** What was sold of an item. */
    record Sale(long orders, long units, long revenueCents) implements Sum<Sale> {
        @Override
        public Sale plus(Sale other) {
            return new Sale(orders + other.orders, units + other.units, revenueCents + other.revenueCents);
        }
    }

    /** Orders that ended alike, and the time from an order to its end where both are known. */
    record Decided(long orders, long timedOrders, long millisSum, long millisMax) implements Sum<Decided> {
        @Override
        public Decided plus(Decided other) {
            return new Decided(orders + other.orders, timedOrders + other.timedOrders,
                    millisSum + other.millisSum, Math.max(millisMax, other.millisMax));
        }
    }

    /** The internal topics and the stores contain JSON, so that a later version may add a field. */
    static <T> Serde<T> serde(Class<T> type) {
        return Serdes.serdeFrom((topic, value) -> value == null ? null : JSON.valueToTree(value).toString().getBytes(),
                (topic, bytes) -> {
                    try {
                        return bytes == null ? null : JSON.readValue(bytes, type);
                    } catch (IOException error) {
                        throw new UncheckedIOException(topic, error);
                    }
                });
    }
}
