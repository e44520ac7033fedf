package insights;

import java.lang.management.ManagementFactory;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.ConcurrentSkipListMap;
import org.apache.kafka.common.MetricName;
import org.apache.kafka.streams.KafkaStreams;

/** What `/metrics` shows, by the names that the other services use for like things. */
final class Metrics {
    static final Map<String, Double> COUNTERS = new ConcurrentSkipListMap<>();

    private Metrics() {}

    static void count(String name, String label, String value) {
        COUNTERS.merge(series(name, label, value), 1.0, Double::sum);
    }

    static String series(String name, String label, String value) {
        return name + "{" + label + "=\"" + value + "\"}";
    }

    /** Prometheus' text format. */
    static String text(KafkaStreams streams) {
        Map<String, Double> all = new TreeMap<>(COUNTERS);
        all.put(series("build_info", "version", Metrics.class.getPackage().getImplementationVersion()), 1.0);
        all.put("process_start_time_seconds", ManagementFactory.getRuntimeMXBean().getStartTime() / 1000.0);
        all.put("streams_running", streams.state() == KafkaStreams.State.RUNNING ? 1.0 : 0.0);
        streams.metrics().forEach((name, metric) -> {
            if (name.name().equals("dropped-records-total")) {
                all.merge("records_dropped_total", (Double) metric.metricValue(), Double::sum);
            }
            if (isLag(name) && metric.metricValue() instanceof Double lag && !lag.isNaN()) {
                all.merge(series("consumer_lag", "topic", name.tags().get("topic")), lag, Double::sum);
            }
        });
        StringBuilder text = new StringBuilder();
        all.forEach((series, value) -> {
            String type = "# TYPE " + series.replaceFirst("\\{.*", "");
            if (text.indexOf(type + " ") < 0) {
                text.append(type).append(type.endsWith("_total") ? " counter\n" : " gauge\n");
            }
            text.append(series).append(' ').append(value).append('\n');
        });
        return text.toString();
    }

    /** Whether it is the lag of a partition, of the consumer that reads events and not of one that restores a store. */
    private static boolean isLag(MetricName metric) {
        String client = metric.tags().getOrDefault("client-id", "");
        // The client shows each topic a second time, with `_` for each dot in its name.
        return metric.name().equals("records-lag") && metric.tags().getOrDefault("topic", "").matches(".*[.-].*")
                && metric.tags().containsKey("partition") && client.endsWith("-consumer") && !client.endsWith("-restore-consumer");
    }
}
