//! The books of the order service: how many orders have each status, and the total of the confirmed ones.

/// Balanced if the status of each order agrees with its legs: a confirmed order was paid for and reserved; a pending
/// order lacks an acceptance, and neither leg is a no.
///
/// The total of the confirmed orders equals what payment has taken, if no order is pending, if the payment leg of
/// each cancelled order is declined, refunded or void, and if payment has written nothing off.
pub const BOOKS: &str = "
    select json_build_object(
               'pending', count(*) filter (where status = 'pending'),
               'confirmed', count(*) filter (where status = 'confirmed'),
               'cancelled', count(*) filter (where status = 'cancelled')) as orders,
           coalesce(sum(total_cents) filter (where status = 'confirmed'), 0)
               as confirmed_cents,
           count(*) filter (where case status
               when 'confirmed' then not (payment = 'verified' and stock = 'reserved')
               when 'pending' then payment = 'verified' and stock = 'reserved'
                   or payment not in ('waiting', 'verified')
                   or stock not in ('waiting', 'reserved')
               end) = 0 as balanced
    from orders";
