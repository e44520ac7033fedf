package reporting;

import io.debezium.connector.jdbc.JdbcSinkConnectorTask;
import java.util.Collection;
import java.util.Map;
import org.apache.kafka.connect.sink.SinkRecord;
import org.apache.kafka.connect.sink.SinkTask;

/**
 * A task of Debezium's JDBC sink, and dead letters for the records that its table refuses. Debezium's own task keeps its
 * first error and fails with the next records, so after an error a new one takes its place.
 */
public final class RowSinkTask extends SinkTask {
    private final RowByRow rows = new RowByRow(
            this::write, (record, error) -> context.errantRecordReporter().report(record, error));
    private Map<String, String> settings;
    private JdbcSinkConnectorTask sink;

    @Override
    public String version() {
        return new RowSinkConnector().version();
    }

    @Override
    public void start(Map<String, String> properties) {
        settings = properties;
        sink = new JdbcSinkConnectorTask();
        sink.initialize(context);
        sink.start(settings);
    }

    @Override
    public void put(Collection<SinkRecord> records) {
        rows.put(records);
    }

    private Throwable write(Collection<SinkRecord> records) {
        sink.put(records);
        Throwable error = sink.getLastProcessingException();
        if (error != null) {
            stop();
            start(settings);
        }
        return error;
    }

    @Override
    public void stop() {
        sink.stop();
    }
}
