-- Judges what a request asks by its limits as they stand, and holds all of it or nothing; or only looks at them.
-- ask: mode 'look', 'hold' or 'force'; key, user; limits [[scope name, id, feature, start, end, hard, ceiling]];
--      wants [[feature, quantity]]; id, node, request, lease (µs)

local stop = refused(ask.mode ~= 'look')
if stop then return stop end

local limits, wants = ask.limits, ask.wants
if ask.mode ~= 'look' and tonumber(ARGV[4]) < 0 then
  for index = 1, #limits do
    if now < limits[index][4] or limits[index][5] <= now then
      return answer({ status = 'time', now = now })
    end
  end
end

open_tenant()
local reaped, expired = reap()

local missing, counters = {}, {}
for index = 1, #limits do
  local limit = limits[index]
  local name, id, hard = limit[1], limit[2], limit[6]
  local counter = find(name, id)
  if not counter and limit[4] > tenant.latest then
    -- It holds nothing but what will still come by.
    counter = { id, limit[3], limit[4], limit[5], 0, 0, hard }
    counter[RESERVED] = reserved_of(name, counter)
    add_counter(name, counter)
  end
  if not counter then
    missing[#missing + 1] = index - 1
  else
    counters[index] = counter
    if counter[HARD] ~= hard then
      counter[HARD] = hard
      changed[name] = true
    end
  end
end
if #missing > 0 then
  save_subjects()
  return answer({
    status = 'load', now = now, reaped = reaped, expired = expired, missing = missing,
    inc = tenant.inc, drains = tenant.drains, draining = draining(),
  })
end

local states, fits = {}, true
for index = 1, #limits do
  local counter, ceiling = counters[index], limits[index][7]
  states[index] = { counter[SETTLED], counter[RESERVED] }
  if ceiling >= 0 then
    local quantity = quantity_of(wants, limits[index][3])
    local taken = clamp(counter[SETTLED] + counter[RESERVED])
    if quantity > 0 and clamp(taken + quantity) > ceiling then fits = false end
  end
end

local status = 'seen'
if ask.mode ~= 'look' then
  if fits or ask.mode == 'force' then
    status = 'held'
    open_hold(ask.id, { ask.node, ask.key, ask.user, now, wants, ask.request }, now + ask.lease)
  else
    status = 'over'
  end
end
save_subjects()
return answer({ status = status, now = now, reaped = reaped, expired = expired, states = states })
