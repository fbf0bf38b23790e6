-- What a reader of sums has to know of a tenant, and which counters it has; with `anew`, all of them are dropped.
-- ask: anew; waiting: name what is counted and not said to be draining; forget: a subject whose counters are dropped, '' for none

local stop = refused(false)
if stop then return stop end
open_tenant()
if ask.anew then
  tenant.inc = FRESH
  tenant.latest = math.max(tenant.latest, now + AHEAD)
  tenant.has_keys, tenant.has_users = false, false
  redis.call('DEL', ROOT .. 's')
  save_tenant()
end
if ask.forget ~= '' then redis.call('DEL', ROOT .. ask.forget) end

local names = redis.call('SRANDMEMBER', ROOT .. 's', LISTED_AT_ONCE)
names[#names + 1] = 't'
local counters = {}
for index = 1, #names do
  local name = names[index]
  local list = subject(name)
  if #list == 1 and name ~= 't' then redis.call('SREM', ROOT .. 's', name) end
  for c = 2, #list do
    local counter = list[c]
    counters[#counters + 1] = { name, counter[ID], counter[FEATURE], counter[START], counter[END], counter[HARD] }
  end
end
local waiting = {}
if ask.waiting then waiting = redis.call('HKEYS', ROOT .. 'e') end
return answer({
  status = 'done', now = now, waiting = waiting, inc = tenant.inc, drains = tenant.drains, draining = draining(), counters = counters,
})
