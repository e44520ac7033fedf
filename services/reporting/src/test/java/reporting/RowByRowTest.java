package reporting;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import java.sql.SQLException;
import java.util.ArrayList;
import java.util.Collection;
import java.util.List;
import java.util.stream.IntStream;
import org.apache.kafka.connect.errors.ConnectException;
import org.apache.kafka.connect.sink.SinkRecord;
import org.junit.jupiter.api.Test;

class RowByRowTest {
    private final List<Object> written = new ArrayList<>();
    private final List<Object> setAside = new ArrayList<>();

    /** A table that refuses a row with the SQLSTATE that stands in it, and then writes none of a batch. */
    private final RowByRow rows = new RowByRow(this::write, (record, error) -> setAside.add(record.value()));

    private Throwable write(Collection<SinkRecord> records) {
        for (SinkRecord record : records) {
            if (record.value() instanceof String state) {
                return new ConnectException(new RuntimeException("a wrapper", new SQLException("", state)));
            }
        }
        records.forEach(record -> written.add(record.value()));
        return null;
    }

    private void put(Object... values) {
        rows.put(IntStream.range(0, values.length)
                .mapToObj(nth -> new SinkRecord("topic", 0, null, null, null, values[nth], nth)).toList());
    }

    @Test
    void a_row_that_the_table_refuses_is_set_aside_and_all_others_of_its_batch_are_written() {
        put(1, "22P02", 2, "23502", 3);
        put();
        put("22021");
        put(4);
        assertEquals(List.of(1, 2, 3, 4), written);
        assertEquals(List.of("22P02", "23502", "22021"), setAside);
    }

    @Test
    void what_is_no_fault_of_a_row_stops_the_task() {
        for (String state : new String[] {"42501", "42703", "53100", "25006", "57P01"}) {
            assertThrows(ConnectException.class, () -> put(1, state), state);
        }
        RowByRow other = new RowByRow(records -> new IllegalStateException(), (record, error) -> setAside.add(record));
        assertThrows(ConnectException.class, () -> other.put(List.of()));
        assertEquals(List.of(), setAside);
    }

    @Test
    void a_table_that_refuses_every_row_stops_the_task() {
        for (int nth = 0; nth < RowByRow.REFUSED_MAX; nth++) {
            put("23514");
        }
        assertThrows(ConnectException.class, () -> put("23514"));
        assertEquals(RowByRow.REFUSED_MAX, setAside.size());
    }
}
