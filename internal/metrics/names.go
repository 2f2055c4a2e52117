package metrics

// Every metric of keysidecar. Besides these there are go_*, process_*,
// promhttp_* and, from go-grpc-middleware's provider, grpc_server_started_total,
// grpc_server_handled_total, grpc_server_msg_received_total and
// grpc_server_msg_sent_total by service, method and code.
const (
	nameBuild = "keysidecar_build_info"

	nameOperations       = "keysidecar_operations_total"
	nameOperationSeconds = "keysidecar_operation_seconds"
	nameOperationBytes   = "keysidecar_operation_bytes_total"

	nameRefused     = "keysidecar_calls_refused_total"
	nameConnections = "keysidecar_connections"
	nameTurnedAway  = "keysidecar_connections_refused_total"
	nameBytes       = "keysidecar_bytes_in_flight"
	nameReloads     = "keysidecar_reloads_total"

	nameAuditRecords = "keysidecar_audit_records"
	nameAuditFailing = "keysidecar_audit_failing_seconds"
	nameAuditBytes   = "keysidecar_audit_bytes"
	nameAuditMost    = "keysidecar_audit_max_bytes"

	nameVaultCalls   = "keysidecar_vault_calls_total"
	nameVaultSeconds = "keysidecar_vault_call_seconds"

	nameMints         = "keysidecar_dek_mints_total"
	nameActive        = "keysidecar_deks_active"
	nameCached        = "keysidecar_deks_cached"
	nameCacheHits     = "keysidecar_dek_cache_hits_total"
	nameCacheMisses   = "keysidecar_dek_cache_misses_total"
	nameCacheLoads    = "keysidecar_dek_cache_loads_total"
	nameCacheNegative = "keysidecar_dek_cache_negative_hits_total"
	nameCacheEvicted  = "keysidecar_dek_cache_evictions_total"
	nameCacheInFlight = "keysidecar_dek_cache_loads_in_flight"

	nameMemoryLevel = "keysidecar_memory_level_info"
	nameMemoryInUse = "keysidecar_memory_slots_in_use"
)

// The labels, all of few values.
const (
	labelOp      = "op"
	labelReason  = "reason"
	labelStatus  = "status"
	labelResult  = "result"
	labelLevel   = "level"
	labelVersion = "version"
	labelDoor    = "listener"
)
