package reporting;

import io.debezium.connector.jdbc.JdbcSinkConnector;
import org.apache.kafka.connect.connector.Task;

/** Debezium's JDBC sink, which one row that the table refuses would stop for good: see {@link RowSinkTask}. */
public final class RowSinkConnector extends JdbcSinkConnector {
    @Override
    public Class<? extends Task> taskClass() {
        return RowSinkTask.class;
    }
}
