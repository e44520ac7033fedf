package insights;

import static org.junit.jupiter.api.Assertions.assertEquals;
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
            "KAFKA_SASL_MECHANISM", "SCRAM-SHA-512",
            "KAFKA_SASL_USERNAME", "insights",
            "KAFKA_SASL_PASSWORD", "pass\"word",
            "SCHEMA_REGISTRY_URL", "https://registry/apis/ccompat/v7/");

    @Test
    void aSecuredProcessRefusesAConnectionInTheClear() {
        Settings secured = new Settings(SECURED);
        assertTrue(secured.kafka().get("sasl.jaas.config").toString().endsWith("password=\"pass\\\"word\";"));
        assertEquals("https://registry/apis/ccompat/v7", secured.registryUrl());
        assertRefused(() -> with("KAFKA_SECURITY_PROTOCOL", "plaintext").kafka(), "KAFKA_SECURITY_PROTOCOL");
        assertRefused(() -> with("KAFKA_SASL_MECHANISM", "PLAIN").kafka(), "KAFKA_SASL_MECHANISM");
        assertRefused(() -> with("SCHEMA_REGISTRY_URL", "http://registry").registryUrl(), "SCHEMA_REGISTRY_URL");
        assertRefused(secured::apiTls, "HTTP_TLS_CERTIFICATE_LOCATION");
    }

    @Test
    void aSecretMayStandInAFile(@TempDir Path directory) throws IOException {
        Path file = Files.writeString(directory.resolve("token"), "abc\n");
        assertEquals("Bearer abc", with("SCHEMA_REGISTRY_TOKEN_FILE", file.toString()).registryAuthorization());
        assertEquals("Bearer abc", with("SCHEMA_REGISTRY_TOKEN", "abc").registryAuthorization());
        assertRefused(() -> with("KAFKA_SASL_PASSWORD_FILE", file.toString()).kafka(), "KAFKA_SASL_PASSWORD");
        assertRefused(() -> with("SCHEMA_REGISTRY_TOKEN_FILE", "/nowhere").registryAuthorization(), "/nowhere");
    }

    @Test
    void aPasswordDoesNotCrossTheNetworkInTheClear() {
        Settings settings = new Settings(Map.of(
                "SCHEMA_REGISTRY_URL", "http://registry",
                "SCHEMA_REGISTRY_USERNAME", "u",
                "SCHEMA_REGISTRY_PASSWORD", "p"));
        assertRefused(settings::registryUrl, "SCHEMA_REGISTRY_URL");
    }

    @Test
    void aValueThatCannotWorkIsNamed() {
        assertRefused(() -> new Settings(Map.of()).streams(), "KAFKA_BOOTSTRAP_SERVERS");
        assertRefused(() -> with("GRACE_SECONDS", "-1").seconds("GRACE_SECONDS", 1), "GRACE_SECONDS");
        assertRefused(() -> with("HTTP_ADDR", "8080").address("HTTP_ADDR", ""), "HTTP_ADDR");
        assertEquals(8080, with("HTTP_ADDR", "[::1]:8080").address("HTTP_ADDR", "").getPort());
    }

    private static Settings with(String name, String value) {
        Map<String, String> environment = new HashMap<>(SECURED);
        environment.put(name, value);
        return new Settings(environment);
    }

    private static void assertRefused(org.junit.jupiter.api.function.Executable action, String name) {
        String message = assertThrows(IllegalArgumentException.class, action).getMessage();
        assertTrue(message.startsWith(name + " "), message);
    }
}
