package insights;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.time.Clock;
import java.time.Duration;
import java.time.Instant;
import java.time.ZoneId;
import java.time.ZoneOffset;
import java.util.Optional;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.junit.jupiter.api.Test;

class HealthTest {
    private Instant now = Instant.parse("2026-11-02T10:00:00Z");
    private final Health health = new Health(new Clock() {
        @Override
        public Instant instant() {
            return now;
        }

        @Override
        public ZoneId getZone() {
            return ZoneOffset.UTC;
        }

        @Override
        public Clock withZone(ZoneId zone) {
            return this;
        }
    });

    private StreamThreadExceptionResponse failAfter(int seconds) {
        now = now.plus(Duration.ofSeconds(seconds));
        return health.failed(new RuntimeException("a wrapper", new IllegalStateException("the cause")));
    }

    @Test
    void theFailureOfAThreadShowsUntilItsFollowerHasRunForAMinute() {
        assertEquals(Optional.empty(), health.failure());
        assertEquals(StreamThreadExceptionResponse.REPLACE_THREAD, failAfter(0));
        assertTrue(health.failure().get().endsWith("IllegalStateException: the cause"), health.failure().get());
        now = now.plus(Duration.ofSeconds(60));
        assertTrue(health.failure().isPresent());
        now = now.plus(Duration.ofSeconds(1));
        assertEquals(Optional.empty(), health.failure());
    }

    @Test
    void aProcessWhoseThreadsGoOnFailingForFiveMinutesEnds() {
        for (int failed = 0; failed < 8; failed++) {
            assertEquals(StreamThreadExceptionResponse.REPLACE_THREAD, failAfter(40), failed + " times");
        }
        assertEquals(StreamThreadExceptionResponse.SHUTDOWN_CLIENT, failAfter(40));
    }

    @Test
    void aProcessWhoseThreadsFailNowAndThenGoesOn() {
        for (int failed = 0; failed < 20; failed++) {
            assertEquals(StreamThreadExceptionResponse.REPLACE_THREAD, failAfter(61), failed + " times");
        }
    }
}
