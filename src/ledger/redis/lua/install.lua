-- Puts counters in place, or right, whose sums over the store have been read.
-- ask: inc, drains as they were before the sums were read; counters [[subject name, id, feature, start, end, hard,
--      base]]: base is the sum of what the store has and of what was draining then and is not in that sum;
--      repair: counters that are here are set right
--
-- An event enters the store only after count.lua has marked it as draining, which raises `drains`. So if that is what
-- it was, nothing but what was draining then is in the sums, and everything else that was counted is still in `e`.

local stop = refused(false)
if stop then return stop end
open_tenant()
if tenant.inc ~= ask.inc or tenant.drains ~= ask.drains then
  return answer({ status = 'moved', now = now, inc = tenant.inc, drains = tenant.drains, draining = draining() })
end

local waiting = {}
local packed = redis.call('HVALS', ROOT .. 'e')
for index = 1, #packed do
  waiting[index] = cmsgpack.unpack(packed[index])
end

local drift = {}
for index = 1, #ask.counters do
  local name, id, feature, first, last, hard, base = unpack(ask.counters[index])
  local settled = base
  for w = 1, #waiting do
    local event = waiting[w]
    if first <= event[E_AT] and event[E_AT] < last and belongs(name, event[E_KEY], event[E_USER]) then
      settled = clamp(settled + quantity_of(event[E_USED], feature))
    end
  end
  local counter = find(name, id)
  if not counter then
    if not ask.repair then
      counter = { id, feature, first, last, settled, 0, hard }
      counter[RESERVED] = reserved_of(name, counter)
      add_counter(name, counter)
    end
  elseif ask.repair then
    local reserved = reserved_of(name, counter)
    if counter[SETTLED] ~= settled then
      drift[#drift + 1] = { index - 1, counter[SETTLED], settled }
    end
    if counter[SETTLED] ~= settled or counter[RESERVED] ~= reserved then
      counter[SETTLED], counter[RESERVED] = settled, reserved
      changed[name] = true
    end
  end
end
save_subjects()
return answer({ status = 'done', now = now, drift = drift })
