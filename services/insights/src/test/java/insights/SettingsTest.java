package insights;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class SettingsTest {
    private static final Map<String, String> SECURED = Map.of(
            "SECURE", "1",
            "KAFKA_BOOTSTRAP_SERVERS", "kafka:9092",
            "KAFKA_SECURITY_PROTOCOL", "sasl_ssl",
            "KAFKA_SASL_USERNAME", "insights",
            "KAFKA_SASL_PASSWORD", "word",
            "SCHEMA_REGISTRY_URL", "https://registry/apis/ccompat/v7/",
            "HTTP_TLS_ENDS_AT_GATEWAY", "1",
            "TOKEN_ISSUER", "https://issuer");

    @Test
    void aSecuredProcessRefusesAConnectionInTheClear() throws IOException {
        String login = Settings.of(SECURED).text("kafka.sasl.jaas.config");
        assertTrue(login.endsWith("required username=\"insights\" password=\"word\";"), login);
        assertRefused("KAFKA_SECURITY_PROTOCOL", "plaintext");
        assertRefused("KAFKA_SECURITY_PROTOCOL", "sasl_plaintext");
        assertRefused("SCHEMA_REGISTRY_URL", "http://registry");
        assertRefused("HTTP_TLS_CERTIFICATE_LOCATION", "HTTP_TLS_ENDS_AT_GATEWAY", "0");
        assertRefused("TOKEN_ISSUER", "");
        assertRefused("TOKEN_KEYS", "http://issuer/keys");
        assertRefused("TOKEN_KEYS", "TOKEN_ISSUER", "http://issuer");
    }

    @Test
    void withoutTheSwitchNothingButKafkaAndTheRegistryMustBeNamed() throws IOException {
        Settings settings = Settings.of(Map.of("KAFKA_BOOTSTRAP_SERVERS", "k:1", "SCHEMA_REGISTRY_URL", "http://r"));
        assertEquals("plaintext", settings.text("kafka.security.protocol"));
        assertNull(settings.text("kafka.ssl.truststore.location"));
        assertFalse(settings.isApiEncrypted());
        assertNull(settings.text("TOKEN_ISSUER"));
        assertRefused("KAFKA_BOOTSTRAP_SERVERS", "");
        assertRefused("SCHEMA_REGISTRY_URL", "");
    }

    @Test
    void aSecretMayStandInAFile(@TempDir Path directory) throws IOException {
        Path file = Files.writeString(directory.resolve("password"), "\uFEFF${SECURE}\r\n");
        Map<String, String> environment = with("KAFKA_SASL_PASSWORD", "");
        environment.put("KAFKA_SASL_PASSWORD_FILE", file.toString());
        String login = Settings.of(environment).text("kafka.sasl.jaas.config");
        assertTrue(login.endsWith("password=\"${SECURE}\";"), login);
        environment.put("KAFKA_SASL_PASSWORD_FILE", "/nowhere");
        assertRefused("/nowhere", environment);
    }

    @Test
    void aValueThatCannotWorkIsNamed() throws IOException {
        for (String address : new String[] {"8080", ":8080", "host", "host:port"}) {
            Settings settings = Settings.of(with("HTTP_ADDR", address));
            assertThrows(IllegalArgumentException.class, () -> settings.address("HTTP_ADDR"), address);
        }
        assertEquals(8080, Settings.of(with("HTTP_ADDR", "[::1]:8080")).address("HTTP_ADDR").getPort());
    }

    private static Map<String, String> with(String name, String value) {
        Map<String, String> environment = new HashMap<>(SECURED);
        environment.put(name, value);
        return environment;
    }

    private static void assertRefused(String name, String value) {
        assertRefused(name, name, value);
    }

    /** The refusal names a variable. */
    private static void assertRefused(String name, String changed, String value) {
        assertRefused(name, with(changed, value));
    }

    private static void assertRefused(String name, Map<String, String> environment) {
        String message = assertThrows(IllegalArgumentException.class, () -> Settings.of(environment)).getMessage();
        assertTrue(message.contains(name), message);
    }
}
