-- Puts counters in place, or right, whose sums over the store have been read.
-- beside: inc, drains as they were before the sums were read; counters [[subject name, feature, feature's name, start,
--         end, hard, base]]: base is the sum of what the store has and of what was draining then and is not in that
--         sum; stored: events that nobody said were draining, and that are in the sums; repair: counters that are
--         here are set right
--
-- An event enters the store only after count.lua has marked it as draining, which raises `drains`. So if that is what
-- it was, nothing but what was draining then is in the sums, and everything else that was counted is still waiting.

local ask = cmsgpack.unpack(ARGV[4])
open_tenant()
check_events()
if tenant[INC] ~= ask.inc or tenant[DRAINS] ~= ask.drains then
  save_subjects()
  return with_events({ status = 'moved' })
end
for index = 1, #ask.stored do
  local id = ask.stored[index]
  local event = call('HGET', ROOT .. 'e', id)
  if event then call('HSET', ROOT .. 'e', id, 'g' .. string.sub(event, 2)) end
end

local waiting = {}
local kept = call('HVALS', ROOT .. 'e')
for index = 1, #kept do
  if string.sub(kept[index], 1, 1) == 'e' then
    waiting[#waiting + 1] = cmsgpack.unpack(string.sub(kept[index], 2))
  end
end

local drift = {}
for index = 1, #ask.counters do
  local name, feature, feature_name, first, last, hard, base = unpack(ask.counters[index])
  local settled = base
  for w = 1, #waiting do
    local event = waiting[w]
    if first <= event[E_AT] and event[E_AT] < last and belongs(name, event[E_KEY], event[E_USER]) then
      for u = 1, #event[E_USED] do
        local used = event[E_USED][u]
        if used[1] == feature then settled = clamp(settled + used[2]) end
      end
    end
  end
  local list, c = find(name, feature, first, last)
  if not list then
    if not ask.repair then
      add_counter(name, feature, feature_name, first, last, settled, hard)
    end
  elseif ask.repair then
    local reserved = reserved_of(name, feature, first, last)
    if list[c + 3] ~= settled then
      drift[#drift + 1] = { index - 1, list[c + 3], settled }
    end
    if list[c + 3] ~= settled or list[c + 4] ~= reserved then
      list[c + 3], list[c + 4] = settled, reserved
      changed[name] = true
    end
  end
end
save_subjects()
return answer({ status = 'done', drift = drift })
