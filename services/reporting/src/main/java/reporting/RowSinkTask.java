package reporting;

import io.debezium.connector.jdbc.JdbcSinkConnectorTask;
import java.util.Collection;
import java.util.Map;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.connect.sink.SinkRecord;

/**
 * A task of Debezium's JDBC sink that gives a record which its table refuses to the dead letters of Connect. Debezium's
 * own task keeps its first error and fails with the next records; it writes again only after it was started again.
 */
public final class RowSinkTask extends JdbcSinkConnectorTask {
    private final RowByRow rows = new RowByRow(
            this::write, (record, error) -> context.errantRecordReporter().report(record, error));
    private Map<String, String> settings;

    @Override
    public void start(Map<String, String> properties) {
        settings = properties;
        super.start(properties);
    }

    @Override
    public void put(Collection<SinkRecord> records) {
        rows.put(records);
    }

    private Throwable write(Collection<SinkRecord> records) {
        super.put(records);
        Throwable error = getLastProcessingException();
        if (error != null) {
            stop();
            start(settings);
        }
        return error;
    }

    /** What was put is written or set aside. */
    @Override
    public Map<TopicPartition, OffsetAndMetadata> preCommit(Map<TopicPartition, OffsetAndMetadata> offsets) {
        return offsets;
    }
}
