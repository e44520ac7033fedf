package insights;

import io.javalin.http.Context;
import io.javalin.http.Handler;
import io.javalin.http.HttpResponseException;
import io.micrometer.core.instrument.Metrics;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.jose4j.http.Get;
import org.jose4j.http.Response;
import org.jose4j.http.SimpleResponse;
import org.jose4j.jwa.AlgorithmConstraints.ConstraintType;
import org.jose4j.jwk.HttpsJwks;
import org.jose4j.jws.AlgorithmIdentifiers;
import org.jose4j.jwt.MalformedClaimException;
import org.jose4j.jwt.consumer.InvalidJwtException;
import org.jose4j.jwt.consumer.JwtConsumer;
import org.jose4j.jwt.consumer.JwtConsumerBuilder;
import org.jose4j.keys.resolvers.HttpsJwksVerificationKeyResolver;

/** Refuses a request without an access token (RFC 9068) of a caller who may see the sums, as the other services do. */
final class Callers implements Handler {
    /** One of them is enough. */
    private static final Set<String> SCOPES = Set.of("sales:read", "operator");
    private static final String SCHEME = "Bearer ";

    private final JwtConsumer tokens;

    Callers(Settings settings) {
        tokens = new JwtConsumerBuilder()
                .setVerificationKeyResolver(new HttpsJwksVerificationKeyResolver(keysOf(settings)))
                .setJwsAlgorithmConstraints(ConstraintType.PERMIT, AlgorithmIdentifiers.EDDSA,
                        AlgorithmIdentifiers.ECDSA_USING_P256_CURVE_AND_SHA256, AlgorithmIdentifiers.RSA_USING_SHA256)
                .setExpectedType(true, "at+jwt").setRequireSubject().setRequireExpirationTime()
                .setExpectedIssuer(settings.text("TOKEN_ISSUER")).setExpectedAudience(settings.text("TOKEN_AUDIENCE"))
                .setAllowedClockSkewInSeconds(30).build();
    }

    /** The address of the keys is a URL or a file. Without one the issuer is asked for it (OpenID discovery). */
    private static HttpsJwks keysOf(Settings settings) {
        Get http = new Get();
        String address = settings.text("TOKEN_KEYS");
        String discovery = settings.text("TOKEN_ISSUER") + "/.well-known/openid-configuration";
        HttpsJwks keys = new HttpsJwks(address != null ? address : discovery);
        keys.setSimpleHttpGet(location -> {
            if (!location.matches("https?://.*")) {
                return new Response(200, "", Map.of(), Files.readString(Path.of(location)));
            }
            SimpleResponse answer = http.get(location);
            return address != null ? answer : http.get(Sum.JSON.readTree(answer.getBody()).get("jwks_uri").asText());
        });
        keys.setDefaultCacheDuration(30);
        keys.setRetainCacheOnErrorDuration(Duration.ofDays(1).toSeconds());
        return keys;
    }

    @Override
    public void handle(Context request) {
        String authorization = request.header("authorization");
        if (authorization == null || !authorization.startsWith(SCHEME)) {
            throw refusal(request, 401, "missing", "Bearer");
        }
        try {
            String token = authorization.substring(SCHEME.length());
            String scope = tokens.processToClaims(token).getClaimValue("scope", String.class);
            if (scope == null || Collections.disjoint(SCOPES, List.of(scope.split(" ")))) {
                throw refusal(request, 403, "insufficient_scope", "Bearer error=\"insufficient_scope\"");
            }
        } catch (InvalidJwtException | MalformedClaimException error) {
            throw refusal(request, 401, "invalid_token", "Bearer error=\"invalid_token\"");
        }
    }

    private static HttpResponseException refusal(Context request, int status, String reason, String challenge) {
        Metrics.counter("http.requests.refused", "reason", reason).increment();
        request.header("www-authenticate", challenge);
        return new HttpResponseException(status, "the access token is refused: " + reason);
    }
}
