//! A port that authenticates its callers by tokens, and an issuer that signs any token of the fuzzer.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::{Body, to_bytes};
use axum::http::{HeaderValue, Request, StatusCode, header};
use axum::routing::get;
use axum::{Extension, Router};
use chassis::{Caller, testing};
use openssl::base64::encode_block;
use openssl::bn::{BigNum, BigNumContext};
use openssl::ec::{EcGroup, EcKey};
use openssl::ecdsa::EcdsaSig;
use openssl::nid::Nid;
use openssl::pkey::Private;
use openssl::sha::sha256;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tower::ServiceExt;

const ISSUER: &str = "https://issuer.example";
const AUDIENCE: &str = "holdfast";
const KEY_ID: &str = "first";

/// How far the clocks of an issuer and of a service may be apart, and a second for the request.
const LEEWAY_SECONDS: u64 = 31;

/// The admin port of a service with one route, which answers with the subject of the caller.
pub struct TokenGate {
    port: Router,
    key: EcKey<Private>,
    runtime: Runtime,
}

impl TokenGate {
    /// Serves with a new key of the issuer.
    #[allow(clippy::new_without_default)]
    pub fn new() -> TokenGate {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).expect("the curve");
        let key = EcKey::generate(&group).expect("a key");
        let (mut x, mut y) = (BigNum::new().expect("a number"), BigNum::new().expect("a number"));
        let mut context = BigNumContext::new().expect("a context");
        let point = key.public_key();
        point.affine_coordinates(&group, &mut x, &mut y, &mut context).expect("a point");
        let [x, y] = [x, y].map(|it| base64_url(&it.to_vec_padded(32).expect("32 bytes")));
        let keys = json!({"keys": [
            {"kty": "EC", "crv": "P-256", "kid": KEY_ID, "x": x, "y": y},
        ]});
        let file = std::env::temp_dir().join(format!("fuzzed-keys-{}.json", std::process::id()));
        std::fs::write(&file, keys.to_string()).expect("a temporary file");
        let runtime = Runtime::new().expect("a runtime");
        let within = runtime.enter();
        let file = file.display().to_string();
        let callers = testing::callers_by_tokens(ISSUER, AUDIENCE, file).expect("a set of keys");
        let subject = async |caller: Caller| caller.subject().unwrap_or_default().to_owned();
        let port = testing::operators_only(Router::new().route("/", get(subject)));
        let port = port.layer(Extension(callers));
        drop(within);
        let gate = TokenGate { port, key, runtime };
        let header = json!({"alg": "ES256", "typ": "at+jwt", "kid": KEY_ID});
        let claims = json!({
            "iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "exp": 99_999_999_999_u64, "scope": "operator",
        });
        let good = gate.ask(gate.sign(&header.to_string(), &claims.to_string()).as_bytes());
        assert_eq!(good, Some((StatusCode::OK, "ann".to_owned())), "a good token is accepted");
        gate
    }

    /// `r` and the value of a header; or `s`, the header of a token, a newline and its claims, which the issuer signs.
    pub fn send(&self, bytes: &[u8]) {
        match bytes.split_first() {
            Some((b'r', value)) => self.send_value(value),
            Some((b's', token)) => self.send_signed(&String::from_utf8_lossy(token)),
            _ => {}
        }
    }

    /// What the issuer has not signed is refused.
    fn send_value(&self, value: &[u8]) {
        if let Some((status, _)) = self.ask(value) {
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{}", String::from_utf8_lossy(value));
        }
    }

    /// What the issuer has signed is accepted only if it says all that a token must say.
    fn send_signed(&self, token: &str) {
        let Some((header, claims)) = token.split_once('\n') else { return };
        let Some((status, subject)) = self.ask(self.sign(header, claims).as_bytes()) else {
            return;
        };
        if status == StatusCode::UNAUTHORIZED {
            return;
        }
        // A service skips what it does not read, also a number that is too large for this parser.
        let (Ok(header), Ok(claims)) = (serde_json::from_str(header), serde_json::from_str(claims))
        else {
            return;
        };
        let (header, claims): (Value, Value) = (header, claims);
        let kind = header["typ"].as_str().unwrap_or_default().to_lowercase();
        assert!(["at+jwt", "application/at+jwt"].contains(&kind.as_str()), "{header}");
        assert!(header["alg"] == "ES256" && header["kid"] == KEY_ID, "{header}");
        for foreign in ["jku", "jwk", "x5u", "x5c", "crit", "enc", "zip"] {
            assert!(header.get(foreign).is_none_or(Value::is_null), "{header}");
        }
        assert_eq!(claims["iss"], ISSUER, "{claims}");
        let audience = &claims["aud"];
        let of_list = audience.as_array().is_some_and(|all| all.iter().any(|it| it == AUDIENCE));
        assert!(*audience == AUDIENCE || of_list, "{claims}");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time").as_secs();
        let end = claims["exp"].as_f64().expect("a number");
        assert!(end + LEEWAY_SECONDS as f64 >= now as f64, "{claims}");
        assert!(claims["sub"].as_str().is_some_and(|it| !it.is_empty()), "{claims}");
        let scopes = claims["scope"].as_str().unwrap_or_default();
        match scopes.split(' ').any(|scope| scope == "operator") {
            true => assert_eq!(
                (status, subject.as_str()),
                (StatusCode::OK, claims["sub"].as_str().unwrap_or_default())
            ),
            false => assert_eq!(status, StatusCode::FORBIDDEN, "{claims}"),
        }
    }

    fn sign(&self, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", base64_url(header.as_bytes()), base64_url(claims.as_bytes()));
        let signature = EcdsaSig::sign(&sha256(signed.as_bytes()), &self.key).expect("a signature");
        let halves =
            [signature.r(), signature.s()].map(|it| it.to_vec_padded(32).expect("32 bytes"));
        format!("Bearer {signed}.{}", base64_url(&halves.concat()))
    }

    /// The answer to a request with this header, if it can be the value of a header.
    fn ask(&self, authorization: &[u8]) -> Option<(StatusCode, String)> {
        let authorization = HeaderValue::from_bytes(authorization).ok()?;
        let request = Request::get("/").header(header::AUTHORIZATION, authorization);
        let request = request.body(Body::empty()).expect("a request");
        self.runtime.block_on(async {
            let response = self.port.clone().oneshot(request).await.expect("an answer");
            let status = response.status();
            let body = to_bytes(response.into_body(), 1 << 20).await.expect("a body");
            Some((status, String::from_utf8_lossy(&body).into_owned()))
        })
    }
}

fn base64_url(bytes: &[u8]) -> String {
    encode_block(bytes).replace('+', "-").replace('/', "_").replace(['=', '\n'], "")
}
