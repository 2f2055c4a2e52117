package server

import (
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/keysidecar/keysidecar/policy"
	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
)

// openToAll marks methods that every caller may call whom a listener proves.
const openToAll policy.Verb = 0

// methods returns the verb that each method needs. A method that is not here
// is never registered: New fails, and with it every test. Zero is not a verb
// that any policy grants.
func methods() map[string]policy.Verb {
	return map[string]policy.Verb{
		keysidecarv1.SealService_Seal_FullMethodName:   policy.Seal,
		keysidecarv1.SealService_Unseal_FullMethodName: policy.Unseal,

		keysidecarv1.AdminService_GetStatus_FullMethodName:     policy.AdminStatus,
		keysidecarv1.AdminService_Reload_FullMethodName:        policy.AdminReload,
		keysidecarv1.AdminService_Evict_FullMethodName:         policy.AdminEvict,
		keysidecarv1.AdminService_GetPolicy_FullMethodName:     policy.AdminPolicy,
		keysidecarv1.AdminService_ListTenants_FullMethodName:   policy.AdminTenants,
		keysidecarv1.AdminService_SuspendTenant_FullMethodName: policy.AdminSuspend,
		keysidecarv1.AdminService_ResumeTenant_FullMethodName:  policy.AdminSuspend,

		grpc_health_v1.Health_Check_FullMethodName: openToAll,
		grpc_health_v1.Health_Watch_FullMethodName: openToAll,
		grpc_health_v1.Health_List_FullMethodName:  openToAll,

		"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo":      openToAll,
		"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": openToAll,
	}
}

// checkMethods returns an error for a method that has no entry.
func checkMethods(registered map[string]grpc.ServiceInfo) error {
	known := methods()
	for service, info := range registered {
		for _, m := range info.Methods {
			full := "/" + service + "/" + m.Name
			if _, ok := known[full]; !ok {
				return fmt.Errorf("method %s has no verb in server/methods.go", full)
			}
		}
	}
	return nil
}
