package insights;

import java.util.List;
import java.util.Map;
import java.util.Objects;
import org.apache.avro.Schema;
import org.apache.avro.generic.GenericRecord;
import org.apache.kafka.common.errors.SerializationException;

/** The times of events that were written in another unit. Avro alone reads any number in the unit of the reader. */
final class Timestamps {
    /** How many of a unit are a second. */
    private static final Map<String, Long> UNITS = Map.of(
            "timestamp-millis", 1_000L, "timestamp-micros", 1_000_000L, "timestamp-nanos", 1_000_000_000L);

    private Timestamps() {}

    /** Converts the times among the fields of an event to the units of its schema, rounding down. */
    static void convert(GenericRecord event, Schema written) {
        for (Schema.Field field : event.getSchema().getFields()) {
            Long unit = unit(field.schema());
            Schema.Field source = written.getField(field.name());
            if (unit != null && source != null && event.get(field.pos()) instanceof Long time) {
                Long writtenUnit = unit(source.schema());
                if (writtenUnit == null) {
                    throw new SerializationException(field.name() + " was written as a number without a unit");
                }
                event.put(field.pos(), unit >= writtenUnit ? Math.multiplyExact(time, unit / writtenUnit)
                        : Math.floorDiv(time, writtenUnit / unit));
            }
        }
    }

    /** Null of what is no time. */
    private static Long unit(Schema schema) {
        List<Schema> variants = schema.isUnion() ? schema.getTypes() : List.of(schema);
        return variants.stream().filter(variant -> variant.getLogicalType() != null)
                .map(variant -> UNITS.get(variant.getLogicalType().getName()))
                .filter(Objects::nonNull).findFirst().orElse(null);
    }
}
