package insights;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.time.Instant;
import java.util.List;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import org.jose4j.jwk.JsonWebKey;
import org.jose4j.jwk.JsonWebKeySet;
import org.jose4j.jwk.VerificationJwkSelector;
import org.jose4j.jws.JsonWebSignature;
import org.jose4j.lang.JoseException;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * The public keys of the issuer, which are read again and again. While the issuer is away, the last ones stay. A token
 * with an unknown key makes them be read at once, but seldom: strangers cannot make this process ask without end.
 */
final class IssuerKeys {
    private static final Logger LOG = LoggerFactory.getLogger(IssuerKeys.class);
    private static final Duration INTERVAL = Duration.ofSeconds(5);
    private static final Duration UNKNOWN_KEY_INTERVAL = Duration.ofSeconds(30);

    private final Http http = new Http();
    private final String issuer;
    private final String address;
    /** Null until they were read. */
    private volatile List<JsonWebKey> keys;
    private volatile String failure = "";
    private Instant mayReadUnknownAt = Instant.MIN;

    /** A file is read at once, and a URL in the background: this process starts while the issuer is away. */
    IssuerKeys(Settings settings) {
        issuer = settings.text("TOKEN_ISSUER");
        address = settings.text("TOKEN_KEYS");
        if (isFile() && (!read() || keys.isEmpty())) {
            throw new IllegalArgumentException("TOKEN_KEYS is " + address + ", which has no keys");
        }
        Executors.newSingleThreadScheduledExecutor(task -> {
            Thread thread = new Thread(task, "issuer-keys");
            thread.setDaemon(true);
            return thread;
        }).scheduleWithFixedDelay(this::read, 0, INTERVAL.toMillis(), TimeUnit.MILLISECONDS);
    }

    boolean areUnavailable() {
        return keys == null;
    }

    /** The key that a token names, or null if the issuer has none of this id for this algorithm. */
    JsonWebKey keyOf(JsonWebSignature token) throws JoseException {
        JsonWebKey found = select(token);
        if (found == null) {
            readForUnknownKey();
            found = select(token);
        }
        return found;
    }

    private JsonWebKey select(JsonWebSignature token) throws JoseException {
        List<JsonWebKey> present = keys;
        return present == null ? null : new VerificationJwkSelector().select(token, present);
    }

    private synchronized void readForUnknownKey() {
        if (Instant.now().isAfter(mayReadUnknownAt)) {
            read();
            mayReadUnknownAt = Instant.now().plus(isFile() ? Duration.ofSeconds(1) : UNKNOWN_KEY_INTERVAL);
        }
    }

    private boolean isFile() {
        return address != null && !address.contains("://");
    }

    private boolean read() {
        try {
            keys = new JsonWebKeySet(text()).getJsonWebKeys();
            failure = "";
            return true;
        } catch (IOException | JoseException | RuntimeException error) {
            if (!error.toString().equals(failure)) {
                failure = error.toString();
                LOG.warn("the keys of the token issuer could not be read: {}", failure);
            }
            return false;
        }
    }

    /** Without an address the issuer is asked for it (OpenID discovery). */
    private String text() throws IOException {
        if (isFile()) {
            return Files.readString(Path.of(address));
        }
        String url = address;
        if (url == null) {
            url = http.get(issuer + "/.well-known/openid-configuration").path("jwks_uri").asText();
            if (issuer.startsWith("https:") && !url.startsWith("https:")) {
                throw new IOException("the issuer names " + url + " for its keys, and that is not an https URL");
            }
        }
        return http.get(url).toString();
    }
}
