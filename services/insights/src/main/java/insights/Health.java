package insights;

import java.time.Clock;
import java.time.Duration;
import java.time.Instant;
import java.util.Optional;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * The failures of threads. A thread that fails is replaced, and the next one begins at the last commit. If threads go
 * on failing, the process ends, so that its supervisor starts it again with new clients, and shows that it does.
 */
final class Health {
    private static final Logger LOG = LoggerFactory.getLogger(Health.class);
    /** For how long no thread may fail until the failures before are over. */
    private static final Duration CALM = Duration.ofMinutes(1);
    private static final Duration FAILING_MAX = Duration.ofMinutes(5);
    private static final int REASON_CHARACTERS_MAX = 300;

    private final Clock clock;
    private Instant began = Instant.MIN;
    private Instant last = Instant.MIN;
    private String reason;

    Health(Clock clock) {
        this.clock = clock;
    }

    synchronized StreamThreadExceptionResponse failed(Throwable error) {
        Instant now = clock.instant();
        if (isCalm(now)) {
            began = now;
        }
        last = now;
        Throwable cause = error;
        while (cause.getCause() != null) {
            cause = cause.getCause();
        }
        reason = cause.toString().substring(0, Math.min(cause.toString().length(), REASON_CHARACTERS_MAX));
        if (now.isAfter(began.plus(FAILING_MAX))) {
            LOG.error("threads have failed since {}, so the process ends for a supervisor to start it", began, error);
            return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
        }
        LOG.error("a thread failed, and another one begins where it committed last", error);
        return StreamThreadExceptionResponse.REPLACE_THREAD;
    }

    /** Why threads fail at present. */
    synchronized Optional<String> failure() {
        return isCalm(clock.instant()) ? Optional.empty()
                : Optional.of("a thread failed, and another one has begun: " + reason);
    }

    private boolean isCalm(Instant now) {
        return now.isAfter(last.plus(CALM));
    }
}
