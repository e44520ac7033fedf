package insights;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.javalin.Javalin;
import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicReference;
import java.util.function.Consumer;
import org.jose4j.jwk.EcJwkGenerator;
import org.jose4j.jwk.JsonWebKey;
import org.jose4j.jwk.JsonWebKey.OutputControlLevel;
import org.jose4j.jwk.JsonWebKeySet;
import org.jose4j.jwk.OkpJwkGenerator;
import org.jose4j.jwk.PublicJsonWebKey;
import org.jose4j.jwk.RsaJwkGenerator;
import org.jose4j.jws.JsonWebSignature;
import org.jose4j.jwt.JwtClaims;
import org.jose4j.keys.EllipticCurves;
import org.jose4j.keys.HmacKey;
import org.jose4j.jwa.AlgorithmConstraints;
import org.jose4j.lang.JoseException;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class CallersTest {
    private static final String ISSUER = "https://issuer";

    private final PublicJsonWebKey key = generate("known");
    private Javalin server;

    @BeforeEach
    void start(@TempDir Path directory) throws Exception {
        Path keys = Files.writeString(directory.resolve("keys.json"), new JsonWebKeySet(key).toJson());
        server = serve(Map.of("TOKEN_ISSUER", ISSUER, "TOKEN_KEYS", keys.toString()));
    }

    @AfterEach
    void stop() {
        server.stop();
    }

    @Test
    void aTokenWithOneOfTheScopesIsAccepted() throws Exception {
        for (String scope : List.of("sales:read", "operator", "orders:read sales:read")) {
            assertEquals(200, status(signed(claims -> claims.setStringClaim("scope", scope))), scope);
        }
        Map<String, String> good = new LinkedHashMap<>();
        good.put("a type in capitals", signed(key, claims -> {}, token -> token.setHeader("typ", "AT+JWT")));
        good.put("the full type", signed(key, claims -> {}, token -> token.setHeader("typ", "application/at+jwt")));
        good.put("a thumbprint", signed(key, claims -> {}, token -> token.setHeader("x5t", "thumb")));
        good.put("two audiences", signed(claims -> claims.setAudience("another", "holdfast")));
        good.put("a clock that is behind", signed(claims -> claims.setExpirationTimeMinutesInTheFuture(-0.4f)));
        good.put("a clock that is ahead", signed(claims -> claims.setNotBeforeMinutesInThePast(-0.4f)));
        good.put("a fraction of a second", signed(claims -> claims.setClaim("exp", inAMinute() + 0.5)));
        good.put("issued tomorrow", signed(claims -> claims.setClaim("iat", inAMinute() + 86_400)));
        for (Map.Entry<String, String> token : good.entrySet()) {
            assertEquals(200, status(token.getValue()), token.getKey());
        }
    }

    private static long inAMinute() {
        return System.currentTimeMillis() / 1000 + 60;
    }

    /** As `a_route_admits_callers_with_its_scopes_and_refuses_all_others` has it for the other services. */
    @Test
    void theSchemeHasNoCaseAndTheHeaderIsThereOnce() throws Exception {
        String good = signed(claims -> {});
        assertEquals(200, ask(server, "bEARER " + good).statusCode());
        for (String authorization : List.of("Bearer  " + good, "Bearer " + good + ",Bearer " + good, "Bearer x",
                "bearer of news")) {
            HttpResponse<String> response = ask(authorization);
            assertEquals(401, response.statusCode(), authorization);
            assertEquals("Bearer error=\"invalid_token\"", response.headers().firstValue("www-authenticate").get());
        }
        HttpRequest twice = HttpRequest.newBuilder(URI.create("http://127.0.0.1:" + server.port() + "/sales"))
                .header("authorization", "Bearer " + good).header("authorization", "Bearer " + good).build();
        assertEquals(401, HttpClient.newHttpClient().send(twice, BodyHandlers.ofString()).statusCode());
    }

    @Test
    void aTokenWithoutAScopeOfTheSumsIsForbidden() throws Exception {
        String challenge = "Bearer error=\"insufficient_scope\"";
        assertRefused(403, challenge, signed(claims -> claims.setStringClaim("scope", "support:read")));
        assertRefused(403, challenge, signed(claims -> claims.setStringClaim("scope", "sales:readers")));
        assertRefused(403, challenge, signed(claims -> claims.unsetClaim("scope")));
    }

    @Test
    void aRequestWithoutATokenIsAskedForOne() throws Exception {
        for (String authorization : new String[] {null, "", "Bearer", "Bearer ", "Basic dTpw", "news"}) {
            HttpResponse<String> response = ask(authorization);
            assertEquals(401, response.statusCode(), authorization);
            assertEquals("Bearer", response.headers().firstValue("www-authenticate").orElse(""), authorization);
        }
    }

    @Test
    void aTokenThatIsNotOfTheIssuerAndForThisAudienceIsRefused() throws Exception {
        PublicJsonWebKey foreign = generate("known");
        PublicJsonWebKey unknown = generate("unknown");
        String good = signed(claims -> {});
        Map<String, String> bad = new LinkedHashMap<>();
        bad.put("no token at all", "no.token.either");
        bad.put("a changed claim", good.replaceFirst("\\..", ".f"));
        bad.put("no signature", good.substring(0, good.lastIndexOf('.') + 1));
        bad.put("another key of the same id", signed(foreign, claims -> {}, token -> {}));
        bad.put("an unknown key", signed(unknown, claims -> {}, token -> {}));
        bad.put("a key of its own", signed(unknown, claims -> {}, token -> token.setJwkHeader(unknown)));
        bad.put("algorithm none", signed(key, claims -> {}, token -> {
            token.setAlgorithmConstraints(AlgorithmConstraints.NO_CONSTRAINTS);
            token.setAlgorithmHeaderValue("none");
            token.setKey(null);
        }));
        bad.put("an HMAC of the public key", signed(key, claims -> {}, token -> {
            token.setAlgorithmHeaderValue("HS256");
            token.setKey(new HmacKey(key.getPublicKey().getEncoded()));
        }));
        bad.put("an identity token", signed(key, claims -> {}, token -> token.setHeader("typ", "JWT")));
        bad.put("no type", signed(key, claims -> {}, token -> token.getHeaders().setObjectHeaderValue("typ", null)));
        bad.put("an extension that it must know", signed(key, claims -> {}, token -> {
            token.setCriticalHeaderNames("made-up");
            token.setHeader("made-up", "x");
        }));
        bad.put("no key id", signed(key, claims -> {}, token -> token.getHeaders().setObjectHeaderValue("kid", null)));
        bad.put("any type", signed(key, claims -> {}, token -> token.setHeader("typ", "application/*")));
        for (String field : List.of("jku", "jwk", "x5u", "x5c", "enc", "zip")) {
            bad.put(field, signed(key, claims -> {}, token -> token.setHeader(field, "x")));
        }
        bad.put("padding", good + "=");
        bad.put("two signatures", good + good.substring(good.lastIndexOf('.')));
        bad.put("issuers", signed(claims -> claims.setClaim("iss", List.of(ISSUER, "another"))));
        bad.put("an issuer with a slash", signed(claims -> claims.setIssuer(ISSUER + "/")));
        bad.put("an empty subject", signed(claims -> claims.setSubject("")));
        bad.put("a subject of two lines", signed(claims -> claims.setSubject("a\nb")));
        bad.put("a long subject", signed(claims -> claims.setSubject("x".repeat(256))));
        bad.put("an end that is no time", signed(claims -> claims.setClaim("exp", "never")));
        bad.put("a beginning that is no time", signed(claims -> claims.setClaim("nbf", "soon")));
        bad.put("expired", signed(claims -> claims.setExpirationTimeMinutesInTheFuture(-1)));
        bad.put("without an end", signed(claims -> claims.unsetClaim("exp")));
        bad.put("not valid yet", signed(claims -> claims.setNotBeforeMinutesInThePast(-1)));
        bad.put("another issuer", signed(claims -> claims.setIssuer("https://other")));
        bad.put("no issuer", signed(claims -> claims.unsetClaim("iss")));
        bad.put("another audience", signed(claims -> claims.setAudience("shop")));
        bad.put("no audience", signed(claims -> claims.unsetClaim("aud")));
        bad.put("no subject", signed(claims -> claims.unsetClaim("sub")));
        bad.put("scopes as a list", signed(claims -> claims.setClaim("scope", List.of("sales:read"))));
        for (Map.Entry<String, String> token : bad.entrySet()) {
            assertRefused(401, "Bearer error=\"invalid_token\"", token.getValue());
        }
        assertEquals(200, status(good));
    }

    @Test
    void theIssuerNamesItsKeysAndMayHaveOtherAlgorithms() throws Exception {
        PublicJsonWebKey rsa = RsaJwkGenerator.generateJwk(2048);
        PublicJsonWebKey ed25519 = OkpJwkGenerator.generateJwk("Ed25519");
        rsa.setKeyId("rsa");
        ed25519.setKeyId("ed25519");
        String keys = new JsonWebKeySet(key, rsa, ed25519).toJson(OutputControlLevel.PUBLIC_ONLY);
        Javalin issuer = Javalin.create(config -> config.routes
                .get("/.well-known/openid-configuration", request -> request.result(
                        "{\"jwks_uri\": \"" + request.url().replaceFirst("/\\..*", "/keys") + "\"}"))
                .get("/keys", request -> request.result(keys))).start("127.0.0.1", 0);
        String url = "http://127.0.0.1:" + issuer.port();
        Javalin other = serve(Map.of("TOKEN_ISSUER", url));
        try {
            for (PublicJsonWebKey each : List.of(key, rsa, ed25519)) {
                String algorithm = each == key ? "ES256" : each == rsa ? "RS256" : "EdDSA";
                String token = signed(each, claims -> claims.setIssuer(url), jws -> {
                    jws.setAlgorithmHeaderValue(algorithm);
                });
                assertEquals(200, ask(other, "Bearer " + token).statusCode(), algorithm);
            }
            assertEquals(401, ask(other, "Bearer " + signed(claims -> {})).statusCode());
        } finally {
            issuer.stop();
            other.stop();
        }
    }

    @Test
    void whileTheIssuerIsAwayTheLastKeysStayAndWithoutKeysTheAnswerIsNotGivenYet() throws Exception {
        AtomicReference<String> answer = new AtomicReference<>();
        AtomicInteger requests = new AtomicInteger();
        Javalin issuer = Javalin.create(config -> config.routes.get("/keys", request -> {
            requests.incrementAndGet();
            if (answer.get() == null) {
                request.status(503);
            } else if (answer.get().isEmpty()) {
                Thread.sleep(60_000);
            } else {
                request.result(answer.get());
            }
        })).start("127.0.0.1", 0);
        Javalin waiting = serve(Map.of(
                "TOKEN_ISSUER", ISSUER, "TOKEN_KEYS", "http://127.0.0.1:" + issuer.port() + "/keys"));
        try {
            String good = "Bearer " + signed(claims -> {});
            assertEquals(503, ask(waiting, good).statusCode());
            assertEquals("1", ask(waiting, good).headers().firstValue("retry-after").orElse(""));
            assertEquals(401, ask(waiting, null).statusCode());
            answer.set("");
            long began = System.nanoTime();
            assertEquals(503, ask(waiting, good).statusCode());
            assertTrue(System.nanoTime() - began < 4e9, "it hangs as long as its issuer");
            answer.set(new JsonWebKeySet(key).toJson());
            long deadline = System.nanoTime() + 20_000_000_000L;
            while (ask(waiting, good).statusCode() != 200) {
                assertTrue(System.nanoTime() < deadline, "the keys are not read");
                Thread.sleep(50);
            }
            answer.set(null);
            int before = requests.get();
            for (int nth = 0; nth < 30; nth++) {
                String unknown = signed(generate("unknown " + nth), claims -> {}, token -> {});
                assertEquals(401, ask(waiting, "Bearer " + unknown).statusCode());
                assertEquals(200, ask(waiting, good).statusCode());
            }
            assertTrue(requests.get() <= before + 3, "strangers make it ask its issuer");
        } finally {
            waiting.stop();
            issuer.stop();
        }
    }

    @Test
    void aFileWithoutKeysIsRefusedAtTheStart(@TempDir Path directory) throws Exception {
        Path keys = Files.writeString(directory.resolve("keys.json"), "{\"keys\": []}");
        for (String address : List.of(keys.toString(), "/nowhere")) {
            Map<String, String> variables = Map.of("TOKEN_ISSUER", ISSUER, "TOKEN_KEYS", address);
            assertThrows(IllegalArgumentException.class, () -> serve(variables), address);
        }
    }

    private static Javalin serve(Map<String, String> variables) throws IOException {
        Map<String, String> environment = new HashMap<>(variables);
        environment.put("KAFKA_BOOTSTRAP_SERVERS", "none:9092");
        environment.put("SCHEMA_REGISTRY_URL", "http://none");
        Callers callers = new Callers(Settings.of(environment));
        return Javalin.create(config -> config.routes.before(callers).get("/sales", request -> request.result("sums")))
                .start("127.0.0.1", 0);
    }

    private static PublicJsonWebKey generate(String id) {
        try {
            PublicJsonWebKey key = EcJwkGenerator.generateJwk(EllipticCurves.P256);
            key.setKeyId(id);
            return key;
        } catch (JoseException error) {
            throw new AssertionError(error);
        }
    }

    private String signed(Consumer<JwtClaims> change) throws JoseException {
        return signed(key, change, token -> {});
    }

    private static String signed(
            PublicJsonWebKey key, Consumer<JwtClaims> change, Consumer<JsonWebSignature> changeToken)
            throws JoseException {
        JwtClaims claims = new JwtClaims();
        claims.setIssuer(ISSUER);
        claims.setAudience("holdfast");
        claims.setSubject("shop");
        claims.setExpirationTimeMinutesInTheFuture(5);
        claims.setStringClaim("scope", "sales:read");
        change.accept(claims);
        JsonWebSignature token = new JsonWebSignature();
        token.setPayload(claims.toJson());
        token.setHeader("typ", "at+jwt");
        token.setKeyIdHeaderValue(key.getKeyId());
        token.setAlgorithmHeaderValue("ES256");
        token.setKey(key.getPrivateKey());
        changeToken.accept(token);
        return token.getCompactSerialization();
    }

    private void assertRefused(int status, String challenge, String token) throws Exception {
        HttpResponse<String> response = ask("Bearer " + token);
        assertEquals(status, response.statusCode(), token);
        assertEquals(challenge, response.headers().firstValue("www-authenticate").orElse(""));
    }

    private int status(String token) throws Exception {
        return ask("Bearer " + token).statusCode();
    }

    private HttpResponse<String> ask(String authorization) throws Exception {
        return ask(server, authorization);
    }

    private static HttpResponse<String> ask(Javalin server, String authorization) throws Exception {
        URI sales = URI.create("http://127.0.0.1:" + server.port() + "/sales");
        HttpRequest.Builder request = HttpRequest.newBuilder(sales);
        if (authorization != null) {
            request.header("authorization", authorization);
        }
        return HttpClient.newHttpClient().send(request.build(), BodyHandlers.ofString());
    }
}
