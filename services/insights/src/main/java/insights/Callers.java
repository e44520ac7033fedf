package insights;

import io.javalin.http.Context;
import io.javalin.http.Handler;
import io.javalin.http.HttpResponseException;
import io.micrometer.core.instrument.Metrics;
import java.util.Collections;
import java.util.List;
import java.util.Locale;
import java.util.Set;
import java.util.regex.Pattern;
import org.jose4j.jwa.AlgorithmConstraints;
import org.jose4j.jwa.AlgorithmConstraints.ConstraintType;
import org.jose4j.jwk.JsonWebKey;
import org.jose4j.jws.AlgorithmIdentifiers;
import org.jose4j.jws.JsonWebSignature;
import org.jose4j.jwt.JwtClaims;
import org.jose4j.jwt.MalformedClaimException;
import org.jose4j.jwt.NumericDate;
import org.jose4j.jwt.consumer.InvalidJwtException;
import org.jose4j.lang.JoseException;

/**
 * Refuses a request without an access token (RFC 9068) of a caller who may see the sums. Each token gets the answer of
 * the other services, whose rules are in `shared/host/src/http/callers`.
 */
final class Callers implements Handler {
    /** One of them is enough. */
    private static final Set<String> SCOPES = Set.of("sales:read", "operator");
    private static final Set<String> TYPES = Set.of("at+jwt", "application/at+jwt");
    private static final AlgorithmConstraints ALGORITHMS = new AlgorithmConstraints(ConstraintType.PERMIT,
            AlgorithmIdentifiers.EDDSA, AlgorithmIdentifiers.ECDSA_USING_P256_CURVE_AND_SHA256,
            AlgorithmIdentifiers.RSA_USING_SHA256);
    /** Fields that bring a key, or that a reader must understand. */
    private static final List<String> REFUSED_FIELDS = List.of("jku", "jwk", "x5u", "x5c", "crit", "enc", "zip");
    /** The library would read over other characters. */
    private static final Pattern FORM = Pattern.compile("[\\w-]+\\.[\\w-]+\\.[\\w-]+");
    private static final int TOKEN_CHARACTERS_MAX = 8 * 1024;
    private static final int SUBJECT_CHARACTERS_MAX = 255;
    private static final long LEEWAY_SECONDS = 30;

    private final String issuer;
    private final String audience;
    private final IssuerKeys keys;

    Callers(Settings settings) {
        issuer = settings.text("TOKEN_ISSUER");
        audience = settings.text("TOKEN_AUDIENCE");
        keys = new IssuerKeys(settings);
    }

    @Override
    public void handle(Context request) {
        List<String> values = Collections.list(request.req().getHeaders("authorization"));
        String[] schemeAndToken = values.isEmpty() ? new String[0] : values.get(0).split(" ", 2);
        boolean isBearer = schemeAndToken.length == 2 && schemeAndToken[0].equalsIgnoreCase("bearer");
        if (values.size() < 2 && (!isBearer || schemeAndToken[1].isEmpty())) {
            throw refusal(request, 401, "missing", "Bearer");
        }
        JwtClaims claims = null;
        try {
            claims = values.size() == 1 ? claims(schemeAndToken[1]) : null;
        } catch (JoseException | InvalidJwtException | MalformedClaimException error) {
            // Each reason has the same answer.
        }
        if (claims == null && keys.areUnavailable()) {
            request.header("retry-after", "1");
            throw refusal(request, 503, "keys_unavailable", null);
        }
        if (claims == null) {
            throw refusal(request, 401, "invalid_token", "Bearer error=\"invalid_token\"");
        }
        if (Collections.disjoint(SCOPES, List.of(String.valueOf(claims.getClaimValue("scope")).split(" ")))) {
            throw refusal(request, 403, "insufficient_scope", "Bearer error=\"insufficient_scope\"");
        }
    }

    /** The claims of a token, or null if it is not accepted. */
    private JwtClaims claims(String token) throws JoseException, InvalidJwtException, MalformedClaimException {
        if (token.length() > TOKEN_CHARACTERS_MAX || !FORM.matcher(token).matches()) {
            return null;
        }
        JsonWebSignature signed = new JsonWebSignature();
        signed.setAlgorithmConstraints(ALGORITHMS);
        signed.setCompactSerialization(token);
        String type = signed.getHeader("typ");
        if (type == null || !TYPES.contains(type.toLowerCase(Locale.ROOT)) || signed.getKeyIdHeaderValue() == null
                || REFUSED_FIELDS.stream().anyMatch(name -> signed.getHeaders().getObjectHeaderValue(name) != null)) {
            return null;
        }
        JsonWebKey key = keys.keyOf(signed);
        if (key == null) {
            return null;
        }
        signed.setKey(key.getKey());
        JwtClaims claims = signed.verifySignature() ? JwtClaims.parse(signed.getPayload()) : null;
        return claims != null && areAccepted(claims) ? claims : null;
    }

    private boolean areAccepted(JwtClaims claims) throws MalformedClaimException {
        NumericDate now = NumericDate.now();
        NumericDate end = claims.getExpirationTime();
        NumericDate begin = claims.getNotBefore();
        String subject = claims.getSubject();
        Object scope = claims.getClaimValue("scope");
        return issuer.equals(claims.getIssuer()) && claims.getAudience().contains(audience)
                && end != null && end.getValue() + LEEWAY_SECONDS >= now.getValue()
                && (begin == null || begin.getValue() - LEEWAY_SECONDS <= now.getValue())
                && subject != null && !subject.isEmpty()
                && subject.codePointCount(0, subject.length()) <= SUBJECT_CHARACTERS_MAX
                && subject.chars().noneMatch(Character::isISOControl)
                && (scope == null || scope instanceof String);
    }

    private static HttpResponseException refusal(Context request, int status, String reason, String challenge) {
        Metrics.counter("http.requests.refused", "reason", reason).increment();
        if (challenge != null) {
            request.header("www-authenticate", challenge);
        }
        return new HttpResponseException(status, challenge == null
                ? "the keys of the token issuer are unavailable" : "the access token is refused: " + reason);
    }
}
