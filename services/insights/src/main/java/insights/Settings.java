package insights;

import java.io.IOException;
import java.net.InetSocketAddress;
import java.net.ProxySelector;
import java.net.http.HttpClient;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Base64;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import javax.net.ssl.SSLContext;
import org.apache.kafka.clients.CommonClientConfigs;
import org.apache.kafka.common.config.SaslConfigs;
import org.apache.kafka.common.config.SslConfigs;
import org.apache.kafka.common.config.types.Password;
import org.apache.kafka.common.security.ssl.DefaultSslEngineFactory;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.errors.LogAndContinueExceptionHandler;

/** The environment, by the names and the rules of the other services. */
record Settings(Map<String, String> environment) {
    static final String SERVICE = "insights";
    static final String DEAD_LETTERS = SERVICE + "-dead-letters";

    Properties streams() {
        Properties streams = kafka();
        streams.put(StreamsConfig.APPLICATION_ID_CONFIG, SERVICE);
        streams.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        streams.put(StreamsConfig.STATE_DIR_CONFIG, text("STATE_DIRECTORY", "state"));
        streams.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, 200);
        streams.put(StreamsConfig.ENSURE_EXPLICIT_INTERNAL_RESOURCE_NAMING_CONFIG, true);
        // A record that cannot be decoded is set aside, and all others go on.
        streams.put(StreamsConfig.DESERIALIZATION_EXCEPTION_HANDLER_CLASS_CONFIG, LogAndContinueExceptionHandler.class);
        streams.put(StreamsConfig.ERRORS_DEAD_LETTER_QUEUE_TOPIC_NAME_CONFIG, DEAD_LETTERS);
        // Kafka may be away for any time: what times out is tried again.
        streams.put(StreamsConfig.TASK_TIMEOUT_MS_CONFIG, Long.MAX_VALUE);
        streams.put(StreamsConfig.mainConsumerPrefix("session.timeout.ms"), 6_000);
        return streams;
    }

    /** How every client of Kafka connects. */
    Properties kafka() {
        Properties kafka = new Properties();
        kafka.put(CommonClientConfigs.BOOTSTRAP_SERVERS_CONFIG, required("KAFKA_BOOTSTRAP_SERVERS"));
        String protocol = text("KAFKA_SECURITY_PROTOCOL", "plaintext").toUpperCase();
        check(!isSecure() || List.of("SSL", "SASL_SSL").contains(protocol), "KAFKA_SECURITY_PROTOCOL");
        kafka.put(CommonClientConfigs.SECURITY_PROTOCOL_CONFIG, protocol);
        if (protocol.startsWith("SASL_")) {
            String mechanism = required("KAFKA_SASL_MECHANISM");
            check(mechanism.startsWith("SCRAM-SHA-"), "KAFKA_SASL_MECHANISM");
            kafka.put(SaslConfigs.SASL_MECHANISM, mechanism);
            kafka.put(SaslConfigs.SASL_JAAS_CONFIG, String.format(
                    "org.apache.kafka.common.security.scram.ScramLoginModule required username=\"%s\" password=\"%s\";",
                    escaped(required("KAFKA_SASL_USERNAME")), escaped(secret("KAFKA_SASL_PASSWORD"))));
        }
        String trusted = text("KAFKA_SSL_CA_LOCATION", null);
        if (protocol.endsWith("SSL") && trusted != null) {
            kafka.put(SslConfigs.SSL_TRUSTSTORE_TYPE_CONFIG, DefaultSslEngineFactory.PEM_TYPE);
            kafka.put(SslConfigs.SSL_TRUSTSTORE_LOCATION_CONFIG, trusted);
        }
        return kafka;
    }

    String registryUrl() {
        String url = required("SCHEMA_REGISTRY_URL").replaceAll("/$", "");
        boolean isPrivate = isSecure() || !registryAuthorization().isEmpty();
        check(url.startsWith(isPrivate ? "https://" : "http"), "SCHEMA_REGISTRY_URL");
        return url;
    }

    /** The header of requests to the registry, empty without credentials. */
    String registryAuthorization() {
        String token = secret("SCHEMA_REGISTRY_TOKEN");
        String pair = text("SCHEMA_REGISTRY_USERNAME", "") + ":" + secret("SCHEMA_REGISTRY_PASSWORD");
        String basic = pair.equals(":") ? "" : "Basic " + Base64.getEncoder().encodeToString(pair.getBytes());
        return token.isEmpty() ? basic : "Bearer " + token;
    }

    HttpClient httpClient(Duration timeout) {
        // A proxy that the environment names leads to the public network, where this registry is not.
        HttpClient.Builder client = HttpClient.newBuilder().connectTimeout(timeout).proxy(ProxySelector.of(null));
        String trusted = text("SSL_CERT_FILE", null);
        return trusted == null ? client.build() : client.sslContext(tls(Map.of(
                SslConfigs.SSL_TRUSTSTORE_TYPE_CONFIG, DefaultSslEngineFactory.PEM_TYPE,
                SslConfigs.SSL_TRUSTSTORE_LOCATION_CONFIG, trusted))).build();
    }

    /** With a certificate, the API is HTTPS. */
    SSLContext apiTls() {
        String certificate = text("HTTP_TLS_CERTIFICATE_LOCATION", null);
        boolean endsAtGateway = text("HTTP_TLS_ENDS_AT_GATEWAY", "0").equals("1");
        check(certificate != null || !isSecure() || endsAtGateway, "HTTP_TLS_CERTIFICATE_LOCATION");
        return certificate == null ? null : tls(Map.of(
                SslConfigs.SSL_KEYSTORE_TYPE_CONFIG, DefaultSslEngineFactory.PEM_TYPE,
                SslConfigs.SSL_KEYSTORE_CERTIFICATE_CHAIN_CONFIG, new Password(file(certificate)),
                SslConfigs.SSL_KEYSTORE_KEY_CONFIG, new Password(file(required("HTTP_TLS_KEY_LOCATION")))));
    }

    private static SSLContext tls(Map<String, Object> stores) {
        Map<String, Object> settings = new HashMap<>(stores);
        settings.put(SslConfigs.SSL_PROTOCOL_CONFIG, SslConfigs.DEFAULT_SSL_PROTOCOL);
        settings.put(SslConfigs.SSL_CIPHER_SUITES_CONFIG, List.of());
        settings.put(SslConfigs.SSL_ENABLED_PROTOCOLS_CONFIG, List.of(SslConfigs.DEFAULT_SSL_PROTOCOL));
        try (DefaultSslEngineFactory factory = new DefaultSslEngineFactory()) {
            factory.configure(settings);
            return factory.sslContext();
        }
    }

    InetSocketAddress address(String name, String fallback) {
        String address = text(name, fallback);
        check(address.matches(".+:\\d{1,5}"), name);
        int colon = address.lastIndexOf(':');
        return new InetSocketAddress(address.substring(0, colon), Integer.parseInt(address.substring(colon + 1)));
    }

    Duration seconds(String name, int fallback) {
        String value = text(name, String.valueOf(fallback));
        check(value.matches("\\d{1,4}"), name);
        return Duration.ofSeconds(Long.parseLong(value));
    }

    private boolean isSecure() {
        return List.of("1", "true").contains(text("SECURE", "0"));
    }

    private String required(String name) {
        String value = text(name, null);
        check(value != null, name);
        return value;
    }

    private String text(String name, String fallback) {
        String value = environment.getOrDefault(name, "").trim();
        return value.isEmpty() ? fallback : value;
    }

    /** A secret, which may stand in a file that another variable names; empty if it is not set. */
    private String secret(String name) {
        String path = text(name + "_FILE", null);
        String value = environment.getOrDefault(name, "");
        check(path == null || value.isEmpty(), name);
        return path == null ? value : file(path).replaceFirst("\n$", "");
    }

    private static String file(String path) {
        try {
            return Files.readString(Path.of(path));
        } catch (IOException error) {
            throw new IllegalArgumentException(path + " cannot be read");
        }
    }

    private static String escaped(String text) {
        return text.replace("\\", "\\\\").replace("\"", "\\\"");
    }

    private static void check(boolean isRight, String name) {
        if (!isRight) {
            throw new IllegalArgumentException(name + " is missing, or its value cannot work: see docs/streams.md");
        }
    }
}
