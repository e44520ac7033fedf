package insights;

import java.io.IOException;
import java.io.InputStream;
import java.net.InetSocketAddress;
import java.net.URI;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import javax.net.ssl.SSLContext;
import org.apache.commons.text.StringSubstitutor;
import org.apache.kafka.common.config.AbstractConfig;
import org.apache.kafka.common.config.ConfigDef;
import org.apache.kafka.common.security.ssl.DefaultSslEngineFactory;

/** The values of insights.properties, which names the variables of the environment. */
record Settings(AbstractConfig values) {
    static Settings of(Map<String, String> environment) throws IOException {
        Properties values = new Properties();
        try (InputStream file = Settings.class.getResourceAsStream("/insights.properties")) {
            values.load(file);
        }
        StringSubstitutor variables = new StringSubstitutor(name -> variable(environment, name))
                .setEnableUndefinedVariableException(true).setEnableSubstitutionInVariables(true)
                .setDisableSubstitutionInValues(true);
        values.replaceAll((name, value) -> variables.replace(value));
        values.values().removeIf(""::equals);
        Settings settings = new Settings(new AbstractConfig(new ConfigDef(), values, false));
        if (!List.of("0", "false").contains(settings.text("SECURE"))) {
            settings.checkSecure();
        }
        return settings;
    }

    /** Null without a value. A file that is not named is empty. */
    private static String variable(Map<String, String> environment, String name) {
        if (!name.startsWith("file:")) {
            String value = environment.getOrDefault(name, "").trim();
            return value.isEmpty() ? null : value;
        }
        String path = variable(environment, name.substring("file:".length()));
        try {
            return path == null ? "" : Files.readString(Path.of(path)).replaceAll("^\uFEFF|\r?\n\\z", "");
        } catch (IOException error) {
            throw new IllegalArgumentException(path + " cannot be read");
        }
    }

    /** No connection is in the clear, and the API knows its callers. */
    private void checkSecure() {
        check(text("kafka.security.protocol").toUpperCase().endsWith("SSL"), "KAFKA_SECURITY_PROTOCOL");
        check(text("SCHEMA_REGISTRY_URL").startsWith("https:"), "SCHEMA_REGISTRY_URL");
        check(isApiEncrypted() || text("HTTP_TLS_ENDS_AT_GATEWAY").equals("1"), "HTTP_TLS_CERTIFICATE_LOCATION");
        check(text("TOKEN_ISSUER") != null, "TOKEN_ISSUER");
        check(!(text("TOKEN_KEYS") + text("TOKEN_ISSUER")).contains("http:"), "TOKEN_KEYS");
    }

    String text(String name) {
        return (String) values.originals().get(name);
    }

    boolean isApiEncrypted() {
        return text("tls.ssl.keystore.key") != null;
    }

    InetSocketAddress address(String name) {
        URI address = URI.create("tcp://" + text(name));
        check(address.getHost() != null && address.getPort() > 0, name);
        return new InetSocketAddress(address.getHost(), address.getPort());
    }

    /** The certificate of the API, if it has one, and what this process trusts as a client of HTTPS. */
    SSLContext tls() {
        try (DefaultSslEngineFactory factory = new DefaultSslEngineFactory()) {
            ConfigDef known = new ConfigDef().withClientSslSupport();
            factory.configure(new AbstractConfig(known, values.originalsWithPrefix("tls."), false).values());
            return factory.sslContext();
        }
    }

    private static void check(boolean isRight, String name) {
        if (!isRight) {
            throw new IllegalArgumentException(name + " is missing, or its value cannot work: see docs/streams.md");
        }
    }
}
