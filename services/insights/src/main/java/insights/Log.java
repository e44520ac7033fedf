package insights;

import io.micrometer.core.instrument.Metrics;
import java.time.Duration;
import java.util.Locale;
import org.apache.logging.log4j.Level;
import org.apache.logging.log4j.LogManager;
import org.apache.logging.log4j.core.async.AsyncQueueFullPolicy;
import org.apache.logging.log4j.core.async.EventRoute;

/** While nothing reads the log, its buffer is full. Then lines are lost and counted, and no thread waits. */
public final class Log implements AsyncQueueFullPolicy {
    /** How long the last lines may take. */
    private static final Duration WRITE_OUT_MAX = Duration.ofSeconds(1);

    @Override
    public EventRoute getRoute(long threadId, Level level) {
        Metrics.counter("log.lines.lost", "level", level.name().toLowerCase(Locale.ROOT)).increment();
        return EventRoute.DISCARD;
    }

    /** Ends the process, after the lines that are still in the buffer. */
    static void exit(int status) {
        Thread writing = new Thread(LogManager::shutdown);
        writing.setDaemon(true);
        writing.start();
        try {
            writing.join(WRITE_OUT_MAX.toMillis());
        } catch (InterruptedException error) {
            // It ends in any case.
        }
        Runtime.getRuntime().halt(status);
    }
}
