package insights;

import com.fasterxml.jackson.databind.JsonNode;
import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.time.Duration;
import java.util.concurrent.CompletionException;
import java.util.concurrent.TimeUnit;

/** Requests for JSON to the registry and to the issuer of tokens. */
final class Http {
    /** From a request to the last byte of its answer. */
    private static final Duration TIMEOUT = Duration.ofSeconds(3);

    // A proxy that the environment names leads to the public network, where neither of them is.
    private final HttpClient client = HttpClient.newBuilder()
            .proxy(HttpClient.Builder.NO_PROXY).version(HttpClient.Version.HTTP_1_1).build();

    /** An answer with another status than 2xx. */
    static final class RefusedException extends IOException {
        private static final long serialVersionUID = 1;
        final int status;
        /** The error code of a registry, or 0. */
        final int code;

        RefusedException(String url, int status, int code) {
            super(url + " answers " + status + (code == 0 ? "" : " with the error code " + code));
            this.status = status;
            this.code = code;
        }
    }

    JsonNode get(String url) throws IOException {
        return send(HttpRequest.newBuilder(URI.create(url)).build());
    }

    JsonNode post(String url, JsonNode body) throws IOException {
        return send(HttpRequest.newBuilder(URI.create(url)).header("content-type", "application/json")
                .POST(BodyPublishers.ofString(body.toString())).build());
    }

    private JsonNode send(HttpRequest request) throws IOException {
        HttpResponse<String> answer;
        try {
            answer = client.sendAsync(request, BodyHandlers.ofString())
                    .orTimeout(TIMEOUT.toMillis(), TimeUnit.MILLISECONDS).join();
        } catch (CompletionException error) {
            throw new IOException(request.uri() + " does not answer: " + error.getCause(), error);
        }
        if (answer.statusCode() / 100 != 2) {
            throw new RefusedException(request.uri().toString(), answer.statusCode(), errorCode(answer.body()));
        }
        return Sum.JSON.readTree(answer.body());
    }

    /** A proxy on the way answers with a text of its own. */
    private static int errorCode(String body) {
        try {
            return Sum.JSON.readTree(body).path("error_code").asInt();
        } catch (IOException error) {
            return 0;
        }
    }
}
