package insights;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.micrometer.core.instrument.Metrics;
import io.micrometer.core.instrument.simple.SimpleMeterRegistry;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

class LogTest {
    private static final int LINES = 20_000;
    private static final String TEXT = "a line of the log that nothing reads, as long as such lines are";

    /** Logs more than a pipe and the buffer take, and exits with 0 if lines were lost and counted. */
    static final class Flood {
        private static final Logger LOG = LoggerFactory.getLogger(Flood.class);

        public static void main(String[] arguments) {
            Metrics.addRegistry(new SimpleMeterRegistry());
            for (int nth = 0; nth < LINES; nth++) {
                LOG.error(TEXT);
            }
            double lost = Metrics.counter("log.lines.lost", "level", "error").count();
            Log.exit(lost > 0 && lost < LINES ? 0 : 1);
        }
    }

    @Test
    void aProcessWhoseLogIsNotReadGoesOnAndCountsTheLinesThatItLoses() throws Exception {
        Process process = new ProcessBuilder(Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                "-Dlog4j2.configurationFile=classpath:log4j2.properties",
                "-cp", System.getProperty("surefire.test.class.path", System.getProperty("java.class.path")),
                Flood.class.getName()).redirectErrorStream(true).start();
        try {
            assertTrue(process.waitFor(30, TimeUnit.SECONDS), "it waits for its reader");
            String read = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
            assertEquals(0, process.exitValue(), read.lines().findFirst().orElse(""));
            assertTrue(read.contains(TEXT));
        } finally {
            process.destroyForcibly();
        }
    }
}
