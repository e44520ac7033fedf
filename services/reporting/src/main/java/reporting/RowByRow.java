package reporting;

import java.sql.SQLException;
import java.util.Collection;
import java.util.List;
import java.util.Set;
import java.util.function.BiConsumer;
import java.util.function.Function;
import org.apache.kafka.connect.errors.ConnectException;
import org.apache.kafka.connect.sink.SinkRecord;

/**
 * Writes records together, and those of a batch that fails one by one, so that a record which the table refuses is set
 * aside and stops no other.
 */
final class RowByRow {
    /** The classes of SQLSTATE for what a record itself is to blame for: its data, and the constraints of the table. */
    private static final Set<String> DATA = Set.of("22", "23");
    /** So many refused rows one after the other are the fault of the table. */
    static final int REFUSED_MAX = 20;

    private final Function<Collection<SinkRecord>, Throwable> write;
    private final BiConsumer<SinkRecord, Throwable> setAside;
    private int refused;

    /** `write` writes all of the records or none, and returns why it has failed, or null. */
    RowByRow(Function<Collection<SinkRecord>, Throwable> write, BiConsumer<SinkRecord, Throwable> setAside) {
        this.write = write;
        this.setAside = setAside;
    }

    void put(Collection<SinkRecord> records) {
        Throwable error = write.apply(records);
        if (error == null) {
            refused = records.isEmpty() ? refused : 0;
        } else if (!isOfData(error) || refused >= REFUSED_MAX) {
            throw new ConnectException("the table cannot be written", error);
        } else if (records.size() > 1) {
            records.forEach(record -> put(List.of(record)));
        } else {
            refused++;
            setAside.accept(records.iterator().next(), error);
        }
    }

    private static boolean isOfData(Throwable error) {
        for (Throwable cause = error; cause != null; cause = cause.getCause()) {
            if (cause instanceof SQLException refusal && refusal.getSQLState() != null) {
                return DATA.contains(refusal.getSQLState().substring(0, 2));
            }
        }
        return false;
    }
}
