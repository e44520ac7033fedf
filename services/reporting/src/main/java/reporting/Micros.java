package reporting;

import java.util.List;
import java.util.Map;
import org.apache.avro.LogicalTypes;
import org.apache.avro.Schema;
import org.apache.avro.generic.GenericData;
import org.apache.avro.generic.GenericRecord;

/** The times of an event in microseconds, as the tables have them, whatever the unit of its schema. */
final class Micros {
    /** How many microseconds a unit is, or the negative number of units that a microsecond is. */
    private static final Map<String, Long> OTHERS = Map.of("timestamp-millis", 1_000L, "timestamp-nanos", -1_000L);
    private static final Schema MICROS = LogicalTypes.timestampMicros().addToSchema(Schema.create(Schema.Type.LONG));

    private Micros() {}

    static GenericRecord of(GenericRecord event) {
        Schema written = event.getSchema();
        if (written.getFields().stream().allMatch(field -> factor(field.schema()) == null)) {
            return event;
        }
        GenericRecord converted = new GenericData.Record(Schema.createRecord(
                written.getName(), written.getDoc(), written.getNamespace(), false, written.getFields().stream()
                        .map(field -> new Schema.Field(field, inMicros(field.schema()))).toList()));
        for (Schema.Field field : written.getFields()) {
            Object value = event.get(field.pos());
            Long factor = factor(field.schema());
            converted.put(field.pos(), factor == null || !(value instanceof Long time) ? value
                    : factor > 0 ? (Object) Math.multiplyExact(time, factor) : Math.floorDiv(time, -factor));
        }
        return converted;
    }

    private static List<Schema> variants(Schema schema) {
        return schema.isUnion() ? schema.getTypes() : List.of(schema);
    }

    /** Null of what is no time, and of a time in microseconds. */
    private static Long factor(Schema schema) {
        for (Schema variant : variants(schema)) {
            if (variant.getLogicalType() != null && OTHERS.containsKey(variant.getLogicalType().getName())) {
                return OTHERS.get(variant.getLogicalType().getName());
            }
        }
        return null;
    }

    private static Schema inMicros(Schema schema) {
        List<Schema> variants = variants(schema).stream()
                .map(variant -> factor(variant) == null ? variant : MICROS).toList();
        return schema.isUnion() ? Schema.createUnion(variants) : variants.get(0);
    }
}
