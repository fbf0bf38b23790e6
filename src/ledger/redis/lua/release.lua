-- Gives back what a hold holds.
-- ask: id; by_hand: its owner is to find out; lease (µs)

local stop = refused(false)
if stop then return stop end
open_tenant()
local was_open = end_hold(ask.id) ~= nil
if was_open and ask.by_hand then
  redis.call('HSET', ROOT .. 'h', ask.id, RELEASED)
  redis.call('ZADD', ROOT .. 'd', now + 2 * ask.lease, ask.id)
end
save_subjects()
return answer({ status = 'done', now = now, was_open = was_open })
