//! What the events of other services cause. Each handler is a pure function from an event and the rows in memory to
//! what is published.

use chassis::{HandlerContext, HandlerResult, unprocessable};
use events::{RequestAccepted, RequestCreated};

use crate::requests::{Request, Requests};

/// `requests.created` → `shop.accepted`
///
/// A request without a subject, or with one of more than 200 characters, is unprocessable.
pub fn accept_request(
    request: &RequestCreated,
    requests: &mut Requests,
    context: HandlerContext,
) -> HandlerResult<RequestAccepted> {
    if requests.request(request.request_id).is_some() {
        return Ok(None); // accepted before
    }
    if !(1..=200).contains(&request.subject.chars().count()) {
        unprocessable!("request {}: its subject is empty or too long", request.request_id);
    }
    let accepted = Request {
        request_id: request.request_id,
        subject: request.subject.clone(),
        accepted_at: context.now,
        accepted_event_id: context.event_id,
    };
    let event = accepted.accepted();
    requests.put_request(accepted);
    Ok(Some(event))
}
