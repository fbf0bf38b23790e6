-- Forgets events that the store has and no journal any more.
-- ask: events [id]

local stop = refused(false)
if stop then return stop end
for first = 1, #ask.events, 1000 do
  local last = math.min(first + 999, #ask.events)
  redis.call('HDEL', ROOT .. 'g', unpack(ask.events, first, last))
  redis.call('HDEL', ROOT .. 'e', unpack(ask.events, first, last))
end
local is_remembered = false
for index = 1, #ask.events do
  if may_be_repeated(ask.events[index]) then
    redis.call('ZADD', ROOT .. 'f', now, ask.events[index])
    is_remembered = true
  end
end
if is_remembered then
  redis.call('ZREMRANGEBYSCORE', ROOT .. 'f', '-inf', now - REMEMBERED)
  redis.call('PEXPIRE', ROOT .. 'f', REMEMBERED / 1000)
end
return answer({ status = 'done', now = now })
