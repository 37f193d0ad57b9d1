-- SPDX-License-Identifier: Apache-2.0
-- Health of Homeostat's kinds for Argo CD. `obj` is the object; Lua 5.1.
local status = obj.status or {}
local conditions = {}
for _, condition in ipairs(status.conditions or {}) do
  conditions[condition.type] = condition
end
local ready, stalled = conditions.Ready, conditions.Stalled

if ready == nil or ready.observedGeneration ~= obj.metadata.generation then
  return { status = "Progressing", message = "The operator has not decided on this generation yet." }
end
if stalled ~= nil and stalled.status == "True" then
  return { status = "Degraded", message = stalled.message }
end
if ready.status == "True" then
  return { status = "Healthy", message = ready.message }
end
if status.reason == "OutOfService" or status.reason == "ReconcileDisabled" then
  return { status = "Suspended", message = ready.message }
end
if status.next == "Person" or status.state == "Failed" then
  return { status = "Degraded", message = ready.message }
end
if obj.kind == "Hypervisor" and ready.status == "False" then
  return { status = "Degraded", message = ready.message }
end
if ready.status == "Unknown" and status.state == "Unknown" then
  return { status = "Unknown", message = ready.message }
end
return { status = "Progressing", message = ready.message }
