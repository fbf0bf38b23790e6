-- Forgets events that the store has and no journal any more.
-- beside: events [id]

open_tenant()
local events = cmsgpack.unpack(ARGV[4])
for first = 1, #events, 1000 do
  call('HDEL', ROOT .. 'e', unpack(events, first, math.min(first + 999, #events)))
end
local is_remembered = false
for index = 1, #events do
  if may_be_repeated(events[index]) then
    call('ZADD', ROOT .. 'f', now, events[index])
    is_remembered = true
  end
end
if is_remembered then
  call('ZREMRANGEBYSCORE', ROOT .. 'f', '-inf', now - REMEMBERED)
  call('PEXPIRE', ROOT .. 'f', REMEMBERED / 1000)
end
return answer({ status = 'done' })
